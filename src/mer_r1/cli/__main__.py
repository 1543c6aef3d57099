"""`python -m mer_r1.cli`, which is what `accelerate launch -m mer_r1.cli` starts."""

from mer_r1.cli import main

if __name__ == "__main__":
    main()
