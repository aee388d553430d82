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

_liveapplyctl_overlays() {
	local name
	liveapplyctl overlay list 2>/dev/null | while read -r name _; do
		printf '%s\n' "$name"
	done | tail -n +2
}

_liveapplyctl() {
	local starter='--no-wait -q --quiet' place='--scope= --runtime --priority='
	local -A options=(
		[status]='--json'
		[diff]='--json'
		[apply]="--allow= --force --restart-services= --packages= --except= --transient --dry-run --json $starter"
		[rollback]=$starter
		[reset]=$starter
		[needs-restart]='--json'
		[overlay]=''
		['overlay create']="$place --writable $starter"
		['overlay add']="--force $starter"
		['overlay set']="--from= --force $starter"
		['overlay edit']="--force $starter"
		['overlay mask']="--force $starter"
		['overlay unset']="--force $starter"
		['overlay enable']=$starter
		['overlay disable']=$starter
		['overlay remove']=$starter
		['overlay freeze']="--force $starter"
		['overlay import']="--name= --sha256= $place --force $starter"
		['overlay backup']=''
		['overlay restore']="--name= --force $starter"
		['overlay list']='--json'
		['overlay show']='--json'
		['overlay diff']='--json'
		[history]='--json -n --lines='
		[plot]=''
		[help]=''
	)
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	# A ref can have a colon, and --allow= has an equals sign: for readline, these end a word.
	if declare -F _get_comp_words_by_ref >/dev/null; then
		_get_comp_words_by_ref -n := cur prev words cword
	fi

	local verb='' arguments=0 i
	for ((i = 1; i < cword; i++)); do
		if [[ ${words[i]} == -* ]]; then
			continue
		elif [[ -z $verb ]]; then
			verb=${words[i]}
		elif [[ $verb == overlay ]]; then
			verb="overlay ${words[i]}"
		else
			arguments=$((arguments + 1))
		fi
	done

	local verbs='' overlay_verbs='' name
	for name in "${!options[@]}"; do
		case $name in
		'overlay '*) overlay_verbs+=" ${name#overlay }" ;;
		*) verbs+=" $name" ;;
		esac
	done

	local choices='' files=''
	case $verb:$prev:$cur in
	:*:-*) choices='-h --help --version' ;;
	:*) choices=$verbs ;;
	apply:--allow:* | apply:*:--allow=*) choices='additive replace force' ;;
	history:-n:* | history:--lines:*) ;;
	overlay\ *:--scope:* | overlay\ *:*:--scope=*) choices='system global user: unit:' ;;
	overlay\ *:--from:* | overlay\ *:*:--from=*) files=yes ;;
	*:*:-*) choices="${options[$verb]-} -h --help" ;;
	apply:* | diff:*) choices=$(ostree refs 2>/dev/null) ;;
	plot:*) choices=$(_liveapplyctl_transactions) ;;
	help:overlay:*) choices=$overlay_verbs ;;
	help:*) choices=$verbs ;;
	overlay:*) choices=$overlay_verbs ;;
	overlay\ create:* | overlay\ list:*) ;;
	overlay\ import:* | overlay\ restore:*) files=yes ;;
	overlay\ enable:* | overlay\ disable:* | overlay\ remove:*) choices=$(_liveapplyctl_overlays) ;;
	overlay\ *)
		if [[ $arguments -eq 0 ]]; then
			choices=$(_liveapplyctl_overlays)
		else
			files=yes
		fi
		;;
	esac

	local value=$cur
	if [[ $cur == --*=* ]]; then
		value=${cur#--*=}
	fi
	if [[ -n $files ]]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$value")
	else
		mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$value")
	fi
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:] ]]; then
		compopt -o nospace 2>/dev/null
	fi
	if [[ $value == *:* ]] && declare -F __ltrim_colon_completions >/dev/null; then
		__ltrim_colon_completions "$value"
	fi
}

complete -F _liveapplyctl liveapplyctl
