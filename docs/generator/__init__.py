"""The documents' site: the pages of the repository and a reference of the API, built into `site/` by `make docs`.

The pages keep their paths, so that the links between them need no translation:

    pages.py      collects README.md, docs/ and every file that they link to
    reference.py  makes pages of protos/gatekey/v1/
    links.py      checks every link of the HTML
    __main__.py   runs these, and Zensical between them
"""
