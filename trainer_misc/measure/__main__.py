"""`python -m trainer_misc.measure`."""

from . import main

if __name__ == "__main__":
    main()
