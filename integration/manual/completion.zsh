#compdef vfio-user-bridge
# SPDX-License-Identifier: BSD-3-Clause
# zsh completion for vfio-user-bridge(1), made by `make manual` from what --help says.

@MADE@

# What _arguments left to a FUNCTION whose command has commands of its own.
_vfio_user_bridge_further() {
    case $state in
        command) _describe -t commands command commands ;;
        arguments) (( $+functions[$1-$words[1]] )) && $1-$words[1] ;;
    esac
}

_vfio_user_bridge_devices() {
    local -a names=(/sys/bus/pci/devices/*(N:t))
    compadd "$@" -a names
}

_vfio_user_bridge_bound() {
    local -a names=(/sys/bus/pci/drivers/vfio-pci/*:*(N:t))
    compadd "$@" -a names
}

_vfio_user_bridge_served() {
    compadd "$@" model:edu
    _vfio_user_bridge_bound "$@"
}

_vfio_user_bridge_iommu_groups() {
    local -a names=(/sys/kernel/iommu_groups/*(N:t))
    compadd "$@" -a names
}

_vfio_user_bridge_users() { _users "$@" }
_vfio_user_bridge_groups() { _groups "$@" }
_vfio_user_bridge_files() { _files "$@" }
_vfio_user_bridge_directories() { _files -/ "$@" }

_vfio-user-bridge "$@"
