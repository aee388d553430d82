# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Completion of liveapplyctl for bash.

# Prints the transactions that can be drawn, the last ones only.
_liveapplyctl_transactions() {
	local transaction
	liveapplyctl history --lines=20 2>/dev/null | while read -r _ _ transaction _; do
		printf '%s\n' "$transaction"
	done | tail -n +2
}

_liveapplyctl() {
	local -A options=(
		[status]='--json'
		[diff]='--json'
		[apply]='--allow= --force --restart-services= --packages= --except= --transient --dry-run --json --no-wait -q --quiet'
		[rollback]='--no-wait -q --quiet'
		[reset]='--no-wait -q --quiet'
		[needs-restart]='--json'
		[history]='--json -n --lines='
		[plot]=''
		[help]=''
	)
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	# A ref can have a colon, and --allow= has an equals sign: for readline, these end a word.
	if declare -F _get_comp_words_by_ref >/dev/null; then
		_get_comp_words_by_ref -n := cur prev words cword
	fi

	local verb='' i
	for ((i = 1; i < cword; i++)); do
		if [[ ${words[i]} != -* ]]; then
			verb=${words[i]}
			break
		fi
	done

	local choices=''
	case $verb:$prev:$cur in
	:*:-*) choices='-h --help --version' ;;
	:*) choices=${!options[*]} ;;
	apply:--allow:* | apply:*:--allow=*) choices='additive replace force' ;;
	history:-n:* | history:--lines:*) ;;
	*:*:-*) choices="${options[$verb]-} -h --help" ;;
	apply:* | diff:*) choices=$(ostree refs 2>/dev/null) ;;
	plot:*) choices=$(_liveapplyctl_transactions) ;;
	help:*) choices=${!options[*]} ;;
	esac

	local value=$cur
	if [[ $cur == --allow=* ]]; then
		value=${cur#--allow=}
	fi
	mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$value")
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
		compopt -o nospace 2>/dev/null
	fi
	if [[ $value == *:* ]] && declare -F __ltrim_colon_completions >/dev/null; then
		__ltrim_colon_completions "$value"
	fi
}

complete -F _liveapplyctl liveapplyctl
