"""`python -m shoal.node`: the head process. Started by `shoal.runtime.launch`, not by hand."""

from shoal.node.head import main

if __name__ == "__main__":
    main()
