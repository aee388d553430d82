# SPDX-License-Identifier: Apache-2.0
#
# Completion of liveapplyctl for fish.

function __liveapplyctl_transactions
    liveapplyctl history --lines=20 2>/dev/null | tail -n +2 | string replace --regex '^\S+ +\S+ +(\S+) .*' '$1'
end

complete -c liveapplyctl -f
complete -c liveapplyctl -s h -l help -d 'Show the help'
complete -c liveapplyctl -n __fish_use_subcommand -l version -d 'Show the version'

complete -c liveapplyctl -n __fish_use_subcommand -a status -d 'Show what is booted, live, and under way'
complete -c liveapplyctl -n '__fish_seen_subcommand_from status' -l json -d 'Print the stamp as JSON'

complete -c liveapplyctl -n __fish_use_subcommand -a diff -d 'Show what applying a commit would mean'
complete -c liveapplyctl -n '__fish_seen_subcommand_from diff' -l json -d 'Print the summary of the plan as JSON'
complete -c liveapplyctl -n '__fish_seen_subcommand_from diff' -a '(ostree refs 2>/dev/null)' -d 'Commit'

complete -c liveapplyctl -n __fish_use_subcommand -a apply -d 'Apply a commit to the running system'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l allow -x -a 'additive replace force' -d 'What kind of change may be applied'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l force -d 'Also another release, or an older commit'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l restart-services -x -a 'none changed rolling' -d 'What is done to services that run on replaced files'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l packages -x -d 'Apply only these packages'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l except -x -d 'Apply all but these packages'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l transient -d 'Do not stage a deployment'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l dry-run -d 'Change nothing, and show what would be done'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l json -d 'With --dry-run, print the plan as JSON'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__fish_seen_subcommand_from apply' -a '(ostree refs 2>/dev/null)' -d 'Commit'

complete -c liveapplyctl -n __fish_use_subcommand -a rollback -d 'Go back to what was live before'
complete -c liveapplyctl -n '__fish_seen_subcommand_from rollback' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__fish_seen_subcommand_from rollback' -s q -l quiet -d 'Say nothing but what goes wrong'

complete -c liveapplyctl -n __fish_use_subcommand -a reset -d 'Go back to the booted tree'
complete -c liveapplyctl -n '__fish_seen_subcommand_from reset' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__fish_seen_subcommand_from reset' -s q -l quiet -d 'Say nothing but what goes wrong'

complete -c liveapplyctl -n __fish_use_subcommand -a needs-restart -d 'Show what runs on files that are no longer there'
complete -c liveapplyctl -n '__fish_seen_subcommand_from needs-restart' -l json -d 'Print what was found as JSON'

complete -c liveapplyctl -n __fish_use_subcommand -a history -d 'Show the transactions of the past'
complete -c liveapplyctl -n '__fish_seen_subcommand_from history' -l json -d 'Print the transactions as JSON'
complete -c liveapplyctl -n '__fish_seen_subcommand_from history' -s n -l lines -x -d 'Show only the last ones'

complete -c liveapplyctl -n __fish_use_subcommand -a plot -d 'Draw the time line of a transaction as SVG'
complete -c liveapplyctl -n '__fish_seen_subcommand_from plot' -a '(__liveapplyctl_transactions)' -d 'Transaction'

complete -c liveapplyctl -n __fish_use_subcommand -a help -d 'Show the verbs, or the usage of one'
complete -c liveapplyctl -n '__fish_seen_subcommand_from help' -a 'status diff apply rollback reset needs-restart history plot help' -d 'Verb'
