# SPDX-License-Identifier: Apache-2.0
#
# Completion of liveapplyctl for fish.

function __liveapplyctl_transactions
    liveapplyctl history --lines=20 2>/dev/null | tail -n +2 | string replace --regex '^\S+ +\S+ +(\S+) .*' '$1'
end

function __liveapplyctl_overlays
    liveapplyctl overlay list 2>/dev/null | tail -n +2 | string replace --regex '^(\S+) .*' '$1'
end

# The verb, of overlay with the one behind it, and the arguments.
function __liveapplyctl_words
    set -l words (string match --invert -- '-*' (commandline -opc)[2..])
    if test "$words[1]" = overlay
        printf '%s\n' (string join ' ' -- $words[1..2]) $words[3..]
    else
        printf '%s\n' $words
    end
end

function __liveapplyctl_in
    set -l words (__liveapplyctl_words)
    test "$words[1]" = "$argv"
end

# Whether the first argument of one of these verbs of overlay is next, and whether it was given.
function __liveapplyctl_first
    set -l words (__liveapplyctl_words)
    contains -- "$words[1]" 'overlay '$argv; and test (count $words) -eq 1
end

function __liveapplyctl_later
    set -l words (__liveapplyctl_words)
    contains -- "$words[1]" 'overlay '$argv; and test (count $words) -gt 1
end

complete -c liveapplyctl -f
complete -c liveapplyctl -s h -l help -d 'Show the help'
complete -c liveapplyctl -n __fish_use_subcommand -l version -d 'Show the version'

complete -c liveapplyctl -n __fish_use_subcommand -a status -d 'Show what is booted, live, and under way'
complete -c liveapplyctl -n '__liveapplyctl_in status' -l json -d 'Print the stamp and the stack of /usr as JSON'

complete -c liveapplyctl -n __fish_use_subcommand -a diff -d 'Show what applying a commit would mean'
complete -c liveapplyctl -n '__liveapplyctl_in diff' -l json -d 'Print the summary of the plan as JSON'
complete -c liveapplyctl -n '__liveapplyctl_in diff' -a '(ostree refs 2>/dev/null)' -d 'Commit'

complete -c liveapplyctl -n __fish_use_subcommand -a apply -d 'Apply a commit to the running system'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l allow -x -a 'additive replace force' -d 'What kind of change may be applied'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l force -d 'Also another release, or an older commit'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l restart-services -x -a 'none changed rolling' -d 'What is done to services that run on replaced files'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l packages -x -d 'Apply only these packages'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l except -x -d 'Apply all but these packages'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l transient -d 'Do not stage a deployment'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l dry-run -d 'Change nothing, and show what would be done'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l json -d 'With --dry-run, print the plan as JSON'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in apply' -a '(ostree refs 2>/dev/null)' -d 'Commit'

complete -c liveapplyctl -n __fish_use_subcommand -a rollback -d 'Go back to what was live before'
complete -c liveapplyctl -n '__liveapplyctl_in rollback' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in rollback' -s q -l quiet -d 'Say nothing but what goes wrong'

complete -c liveapplyctl -n __fish_use_subcommand -a reset -d 'Go back to the booted tree'
complete -c liveapplyctl -n '__liveapplyctl_in reset' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in reset' -s q -l quiet -d 'Say nothing but what goes wrong'

complete -c liveapplyctl -n __fish_use_subcommand -a needs-restart -d 'Show what runs on files that are no longer there'
complete -c liveapplyctl -n '__liveapplyctl_in needs-restart' -l json -d 'Print what was found as JSON'

complete -c liveapplyctl -n __fish_use_subcommand -a overlay -d 'Keep files of your own on top of the live tree'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a create -d 'Make a new overlay'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a add -d 'Take files as they are now'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a set -d 'Give files other content'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a edit -d 'Change a file in an editor'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a mask -d 'Hide files or directories'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a unset -d 'Take paths out of an overlay'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a enable -d 'Have overlays take effect'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a disable -d 'Keep overlays, without effect'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a remove -d 'Delete overlays'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a freeze -d 'Make a writable overlay an ordinary one'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a import -d 'Take an updates image'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a backup -d 'Write an overlay to a file'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a restore -d 'Make an overlay from a backup'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a list -d 'Show which overlays there are'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a show -d 'Show what an overlay has'
complete -c liveapplyctl -n '__liveapplyctl_in overlay' -a diff -d 'Show what an overlay changes'

complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -l scope -x -a 'system global user: unit:' -d 'Who sees it'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l scope -x -a 'system global user: unit:' -d 'Who sees it'
complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -l runtime -d 'Until the next boot only'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l runtime -d 'Until the next boot only'
complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -l priority -x -d 'The higher is above the lower'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l priority -x -d 'The higher is above the lower'
complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -l writable -d 'Have /usr written to through it'
complete -c liveapplyctl -n '__liveapplyctl_in overlay set' -l from -r -F -d 'File with the new content'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l name -x -a '(__liveapplyctl_overlays)' -d 'Overlay'
complete -c liveapplyctl -n '__liveapplyctl_in overlay restore' -l name -x -d 'Overlay'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l sha256 -x -d 'Checksum of the image'
complete -c liveapplyctl -n '__liveapplyctl_in overlay add' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay set' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay edit' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay mask' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay unset' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay freeze' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay restore' -l force -d 'Also hide what the system cannot do without'
complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay add' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay set' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay edit' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay mask' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay unset' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay enable' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay disable' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay remove' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay freeze' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay restore' -l no-wait -d 'Start the unit, and do not wait for its end'
complete -c liveapplyctl -n '__liveapplyctl_in overlay create' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay add' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay set' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay edit' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay mask' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay unset' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay enable' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay disable' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay remove' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay freeze' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay import' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay restore' -s q -l quiet -d 'Say nothing but what goes wrong'
complete -c liveapplyctl -n '__liveapplyctl_in overlay list' -l json -d 'Print the overlays as JSON'
complete -c liveapplyctl -n '__liveapplyctl_in overlay show' -l json -d 'Print the overlay as JSON'
complete -c liveapplyctl -n '__liveapplyctl_in overlay diff' -l json -d 'Print the differences as JSON'
complete -c liveapplyctl -n '__liveapplyctl_first add set edit mask unset enable disable remove freeze backup show diff' -a '(__liveapplyctl_overlays)' -d 'Overlay'
complete -c liveapplyctl -n '__liveapplyctl_later enable disable remove' -a '(__liveapplyctl_overlays)' -d 'Overlay'
complete -c liveapplyctl -n '__liveapplyctl_later add set edit mask unset backup' -F
complete -c liveapplyctl -n '__liveapplyctl_first import restore' -F

complete -c liveapplyctl -n __fish_use_subcommand -a history -d 'Show the transactions of the past'
complete -c liveapplyctl -n '__liveapplyctl_in history' -l json -d 'Print the transactions as JSON'
complete -c liveapplyctl -n '__liveapplyctl_in history' -s n -l lines -x -d 'Show only the last ones'

complete -c liveapplyctl -n __fish_use_subcommand -a plot -d 'Draw the time line of a transaction as SVG'
complete -c liveapplyctl -n '__liveapplyctl_in plot' -a '(__liveapplyctl_transactions)' -d 'Transaction'

complete -c liveapplyctl -n __fish_use_subcommand -a help -d 'Show the verbs, or the usage of one'
complete -c liveapplyctl -n '__liveapplyctl_in help' -a 'status diff apply rollback reset needs-restart overlay history plot help' -d 'Verb'
