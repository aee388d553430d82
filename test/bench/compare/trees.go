package main

// trees measures reading and comparing two trees of 100,000 files, of which one differs.
func (b *bench) trees(g generated) section {
	b.Logf("reading and comparing two trees")
	return section{title: "TWO TREES OF 100,000 FILES, OF WHICH ONE DIFFERS", groups: []group{
		b.compareTrees("in a directory of 3000", g.repo, g.base, g.inLarge),
		b.compareTrees("in a directory of 10", g.repo, g.base, g.inSmall),
	}}
}

// compareTrees measures whole processes, and takes off what each of them needs to start, which is most of it: what
// ostree rev-parse takes, which starts and opens the repo, and what is not between opening the repo and having the list.
func (b *bench) compareTrees(name, repo, old, new string) group {
	start := row{name: "ostree rev-parse", data: -1}
	theirs := row{name: "ostree diff", data: -1}
	ours := row{name: "liveapply, the process", data: -1}
	inside := row{name: "liveapply, reading and comparing alone", data: -1}
	run := func(r *row, argv ...string) func(bool) {
		return func(counted bool) {
			figures := b.measured(nil, argv...).figures
			if !counted {
				return
			}
			r.time = append(r.time, figures["elapsed"])
			r.peak = append(r.peak, figures["peak"])
			if r == &ours {
				inside.time = append(inside.time, figures["total"])
			}
		}
	}
	b.inTurn([]func(bool){
		run(&start, "ostree", "--repo="+repo, "rev-parse", old),
		run(&theirs, "ostree", "--repo="+repo, "diff", old, new),
		run(&ours, b.program("liveapply-way"), "diff", repo, old, new),
	})
	work := theirs.time.median() - start.time.median()
	return group{
		name: name,
		rows: []row{start, theirs, ours, inside},
		comparisons: []comparison{
			{name: "the processes", value: ours.time.median() / theirs.time.median(), held: notHeld},
			{name: "alone / (ostree diff - rev-parse)", value: inside.time.median() / work, held: under, limit: 1. / 20},
		},
	}
}
