# SPDX-License-Identifier: BSD-3-Clause
# bash completion for vfio-user-bridge(1), made by `make manual` from what --help says.

_vfio_user_bridge() {
    local words current word command= option= position=1 lister
    # Not COMP_WORDS, where addresses are split at their colons.
    read -ra words <<<"${COMP_LINE:0:COMP_POINT}."
    words[-1]=${words[-1]%.}
    current=${words[-1]}
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $option ]]; then
            option= # this is its value
        elif [[ $word == -* ]]; then
            _vfio_user_bridge_place "$command$word" && option=$word
        elif [[ $command$word == "supervise serve" ]]; then
            command="serve " # what follows is for that
        elif ((position == 1)) && _vfio_user_bridge_place "$command$word -"; then
            command+="$word "
        else
            ((position++))
        fi
    done
    [[ ! $option && $current == --*=* ]] && option=${current%%=*} current=${current#*=}
    [[ ! $option && $current == -* ]] && position=-

    _vfio_user_bridge_place "$command${option:-$position}" || return
    case $lister in
        files) compopt -o default ;;
        directories) compopt -o dirnames ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$("_vfio_user_bridge_${lister[@]}")" -- "$current") ;;
    esac

    # readline replaces only what follows the last word break, which a colon is.
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
}

# What lists the words for a place, which is COMMAND and OPTION, or a dash where an option may stand,
# or the number of what isn't one. Fails where there is no such place.
_vfio_user_bridge_place() {
    case $1 in
@MADE@
        *) return 1 ;;
    esac
}

_vfio_user_bridge_words() { printf '%s\n' "$@"; }
_vfio_user_bridge_devices() { _vfio_user_bridge_names /sys/bus/pci/devices/*; }
_vfio_user_bridge_bound() { _vfio_user_bridge_names /sys/bus/pci/drivers/vfio-pci/*:*; }
_vfio_user_bridge_served() { echo model:edu && _vfio_user_bridge_bound; }
_vfio_user_bridge_iommu_groups() { _vfio_user_bridge_names /sys/kernel/iommu_groups/*; }
_vfio_user_bridge_users() { compgen -u; }
_vfio_user_bridge_groups() { compgen -g; }

_vfio_user_bridge_names() { # the last components of those PATHs that are there
    local path
    for path; do [[ -e $path ]] && echo "${path##*/}"; done
}

complete -F _vfio_user_bridge vfio-user-bridge
