# shellcheck shell=sh
# What the training scripts have in common; they read this file. PYTHON and GPUS are their settings.

refuse() { # MESSAGE
    echo "$(basename "$0"): $1" >&2
    exit 2
}

explain_if_asked() { # [ARGUMENT]: runs usage, which each script has
    case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
    esac
}

check_number() { # NAME VALUE
    case $2 in
    '' | *[!0-9]* | 0) refuse "$1 must be a number above 0, not '$2'" ;;
    esac
}

find_packages() {
    PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONPATH
}

run_processes() { # COUNT MODULE [ARGUMENT...]; with RUN=exec in place of the script
    count=$1
    shift
    find_packages
    if [ "$count" -gt 1 ]; then
        set -- torch.distributed.run --standalone --nproc-per-node "$count" -m "$@"
    fi
    ${RUN-} "$PYTHON" -m "$@"
}
