"""To which of several replicas a request goes: where its deadline is most surely met, by each
replica's own forecast.

Pure and synchronous, as `engine.deciding` is: the time is an argument, chance is an argument, and
nothing here imports torch, grpc or asyncio, reads a clock, or touches a file. A live router and the
simulator's fleets (`--routing`) decide by this same code.

What a router does, with a `router.Router` of its own:

    router = Router("qos", seed)                      # or a rival by its name in `ROUTINGS`
    router.told(name, told)                           # each time that a replica tells its load
    name = router.ranked(asked, names, now)[0]        # the best first; those available in `names`
    router.sent(name, asked, now, call)               # when it is on its way
    router.ended(name, call)                          # when it has ended, however it did
    router.lost(name)                                 # when the replica is gone

`Asked` is what is known of the request, `Told` what a replica said of itself at one instant (both
in `states.py`): a second later much of it is no longer so. What the router has sent there since is
counted with it, and what the replica has had time to do; so the requests of that second do not all
go to whoever was the emptiest when it began. A replica that has said nothing for STALE_S comes
after all others.

`qos.ranked` is the decision itself, on plain values: of the replicas where the deadline is met as
surely as anywhere it takes the one with the least work that is as urgent as the request, which
background work is not; a prefix that a replica holds counts as work that need not be done.
`rivals.py` has what others do, with the same arguments, and `told.py` makes what is told of what an
engine says of itself.
"""
