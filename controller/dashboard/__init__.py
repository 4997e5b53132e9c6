"""``wgpy dashboard``: the whole mesh on a web page, gathered from the agents' status APIs. It reads, and changes nothing.

    source ──Nodes──► gather ◄──summaries── agents          view: what it all comes to       picture: what is drawn
                         └──sightings──► view ──► page, a NiceGUI page for each browser ◄──gate── browser

:mod:`.view` and :mod:`.picture` are pure. :mod:`.gate` stands between the network and the page: who may read, and what may be
loaded.
"""
