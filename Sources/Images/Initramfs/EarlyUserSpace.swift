// The initramfs of Roost's Debian guests: busybox, the few modules that reach the root disk, a script that goes there.
internal import Foundation

/// What runs in a guest before its root file system.
package enum EarlyUserSpace {
    /// Modules needed to mount the root file system from a virtio disk.
    static let rootModules = ["virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4"]

    /// The initramfs that mounts the disk named by `root=` and starts the program named by `init=` there.
    static func rootSwitching(kernelRoot: String) throws(ImageError) -> [UInt8] {
        var archive = try archive(modules: rootModules, root: kernelRoot)
        archive.addFile("init", text: initScript, mode: 0o755)
        return archive.serialized()
    }

    /// Busybox with all its names, the modules in `/modules` with their order, and the mount points.
    package static func archive(modules: [String], root: String) throws(ImageError) -> CPIOArchive {
        let busybox = try Tool.require("busybox", package: "busybox-static")
        guard let program = FileManager.default.contents(atPath: busybox) else {
            throw ImageError(.fileSystem, "cannot read \(busybox)")
        }
        var archive = CPIOArchive()
        for directory in ["bin", "dev", "etc", "mnt", "modules", "proc", "run", "sys", "tmp"] {
            archive.addDirectory(directory)
        }
        // The kernel opens this for init before devtmpfs is mounted.
        archive.addCharacterDevice("dev/console", major: 5, minor: 1)
        archive.addFile("bin/busybox", contents: Array(program), mode: 0o755)
        let names = String(decoding: try Tool.output(busybox, ["--list"]), as: UTF8.self)
        for name in names.split(separator: "\n") where name != "busybox" {
            archive.addSymbolicLink("bin/\(name)", to: "busybox")
        }
        let order = try KernelModules(root: root).loadOrder(modules)
        for module in order { archive.addFile("modules/\(module.name).ko", contents: module.contents) }
        archive.addFile("modules/order", text: order.map { $0.name + "\n" }.joined())
        return archive
    }

    static let initScript = #"""
        #!/bin/sh
        # Loads what the root disk needs, mounts it and goes there.
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t devtmpfs dev /dev 2>/dev/null
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order

        root=/dev/vda type=ext4 mode=ro init=/sbin/init
        for word in $(cat /proc/cmdline); do
            case $word in
                root=*) root=${word#root=};;
                rootfstype=*) type=${word#rootfstype=};;
                rw) mode=rw;;
                ro) mode=ro;;
                init=*) init=${word#init=};;
            esac
        done
        tries=0
        while [ ! -b "$root" ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
        if ! mount -t "$type" -o $mode "$root" /mnt; then
            echo "initramfs: cannot mount $root; here is a shell, 'poweroff -f' ends"
            while :; do setsid cttyhack sh; done
        fi
        mount --move /dev /mnt/dev
        umount /sys /proc
        exec switch_root /mnt "$init"
        """#

    /// What busybox's DHCP client calls with the lease in its environment.
    package static let dhcpScript = #"""
        #!/bin/sh
        # Called by udhcpc: $1 is what happened, the lease is in the environment.
        case $1 in
            deconfig)
                ip addr flush dev "$interface"
                ip link set "$interface" up
                ;;
            bound | renew)
                ip addr replace "$ip/${mask:-24}" dev "$interface"
                for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
                [ -z "$dns" ] || for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
                ;;
        esac
        """#
}
