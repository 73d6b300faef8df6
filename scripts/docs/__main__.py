"""Write the generated pages: ``python -m scripts.docs``."""

from __future__ import annotations

from scripts.docs.pages import ROOT, pages


def main() -> None:
    """Write each page whose text has changed, and say which."""
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"docs: {name} is new")


if __name__ == "__main__":
    main()
