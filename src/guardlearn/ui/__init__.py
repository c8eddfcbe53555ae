"""`guardlearn ui`: ℛ in a browser, before anyone trains on it: what it holds, chains, what they become, marks.

    addresses  items in URLs
    opened     ℛ as one server has it open: readers, settings, what was counted
    access     who may ask: hosts, token, form token, headers
    pages      templates → answers
    overview, listing, marking     ℛ at a glance, its items, the marks
    chains, shapes, chain_pages    an item: its chain, what it becomes, near-duplicates
    adapter_, round_, evidence_pages   what was made of items, and measured
    app        all of it as one ASGI application
    serving    the server process

`static/htmx.min.js` is htmx 2.0.11 (https://www.npmjs.com/package/htmx.org), unchanged, under the licence beside it.
Nothing is fetched from elsewhere, every page works without script, and only a mark writes. Needs starlette, uvicorn and
jinja2 (`guardlearn[ui]`).
"""
