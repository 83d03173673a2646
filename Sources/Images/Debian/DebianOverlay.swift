// The files that Roost lays over Debian's: init, network, login. All of them shell scripts and configuration.
internal import Foundation

/// What makes Debian's packages a guest.
struct DebianOverlay {
    let variant: DebianImageBuilder.Variant
    /// The program through which Roost runs others in the guest.
    let agent: [UInt8]

    /// Packages beyond Debian's required ones.
    static func packages(_ variant: DebianImageBuilder.Variant) -> [String] {
        let common = [
            "linux-image-cloud-amd64", "kmod", "iproute2", "iputils-ping", "procps", "ca-certificates", "less", "nano",
            "python3",
        ]
        switch variant {
        case .minimal: return common + ["busybox-static"]
        case .systemd: return common + ["systemd-sysv", "systemd-resolved", "dbus", "udev", "libpam-systemd"]
        }
    }

    /// What dpkg leaves out: a small guest has no manuals.
    static func dpkgOptions(_ variant: DebianImageBuilder.Variant) -> [String] {
        guard variant == .minimal else { return [] }
        return [
            "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/doc/*",
            "path-include=/usr/share/doc/*/copyright",
        ]
    }

    /// The kernel's command line.
    var commandLine: String {
        switch variant {
        case .minimal: "console=ttyS0 root=/dev/vda rw init=/sbin/roost-init"
        case .systemd: "console=ttyS0 root=/dev/vda rw init=/sbin/init net.ifnames=0"
        }
    }

    private enum Entry {
        case file(String, mode: Int)
        case link(String)
        case program([UInt8])
    }

    /// Writes the tree of files below a folder.
    func write(to folder: String) throws(ImageError) {
        let manager = FileManager.default
        do {
            for (path, entry) in entries {
                let target = folder + path
                try manager.createDirectory(
                    atPath: (target as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
                switch entry {
                case .file(let text, let mode):
                    try Data((text + "\n").utf8).write(to: URL(fileURLWithPath: target))
                    try manager.setAttributes([.posixPermissions: mode], ofItemAtPath: target)
                case .program(let bytes):
                    try Data(bytes).write(to: URL(fileURLWithPath: target))
                    try manager.setAttributes([.posixPermissions: 0o755], ofItemAtPath: target)
                case .link(let destination):
                    try manager.createSymbolicLink(atPath: target, withDestinationPath: destination)
                }
            }
        } catch {
            throw ImageError(.fileSystem, "cannot write to \(folder): \(error.localizedDescription)")
        }
    }

    private var entries: [(String, Entry)] {
        let common: [(String, Entry)] = [
            ("/etc/hostname", .file("debian", mode: 0o644)),
            ("/etc/hosts", .file("127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost", mode: 0o644)),
            ("/usr/lib/roost/agent", .program(agent)),
            ("/etc/fstab", .file("/dev/vda / ext4 rw,relatime 0 0", mode: 0o644)),
        ]
        switch variant {
        case .minimal: return common + minimal
        case .systemd: return common + systemd
        }
    }

    // Paths go through /usr: /sbin is a link to /usr/sbin, and a folder laid over it would replace it.
    private var minimal: [(String, Entry)] {
        [
            ("/etc/resolv.conf", .file("", mode: 0o644)),
            ("/etc/apt/apt.conf.d/90roost", .file("Acquire::Languages \"none\";", mode: 0o644)),
            ("/etc/inittab", .file(Self.inittab, mode: 0o644)),
            ("/etc/motd", .file(Self.motd, mode: 0o644)),
            ("/usr/sbin/roost-init", .file(Self.initScript, mode: 0o755)),
            ("/usr/sbin/init", .link("/bin/busybox")),
            ("/usr/sbin/poweroff", .link("/bin/busybox")),
            ("/usr/sbin/reboot", .link("/bin/busybox")),
            ("/usr/sbin/halt", .link("/bin/busybox")),
            ("/usr/sbin/shutdown", .file(Self.shutdown, mode: 0o755)),
            ("/usr/lib/roost/start", .file(Self.start, mode: 0o755)),
            ("/usr/lib/roost/stop", .file(Self.stop, mode: 0o755)),
            ("/usr/lib/roost/login", .file(Self.login, mode: 0o755)),
            ("/usr/lib/roost/console", .file(Self.console, mode: 0o755)),
            ("/usr/lib/roost/dhcp", .file(Self.dhcp, mode: 0o755)),
            // busybox's acpid looks here when the power button was pressed.
            ("/etc/acpi/PWRF/00000080", .file("#!/bin/sh\nexec /sbin/poweroff", mode: 0o755)),
        ]
    }

    private static let initScript = #"""
        #!/bin/sh
        # The first program of a small Roost guest: busybox's init, which /etc/inittab steers.
        exec /sbin/init "$@"
        """#

    private static let inittab = #"""
        # Read by busybox's init.
        ::sysinit:/usr/lib/roost/start
        ::respawn:/usr/lib/roost/agent
        ::respawn:/usr/lib/roost/console
        ::ctrlaltdel:/sbin/reboot
        ::shutdown:/usr/lib/roost/stop
        """#

    private static let motd = "\nDebian in Roost. `poweroff` ends the machine.\n"

    private static let start = #"""
        #!/bin/sh
        # Brings the system up: kernel file systems, modules, name, network.
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin
        mountpoint -q /proc || mount -t proc -o nosuid,nodev,noexec proc /proc
        mountpoint -q /sys || mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
        mountpoint -q /dev || mount -t devtmpfs -o nosuid devtmpfs /dev
        mkdir -p /dev/pts /dev/shm
        mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /dev/pts
        mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
        mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
        mount -t tmpfs -o nosuid,nodev tmpfs /tmp
        mkdir -p /run/lock
        chmod 1777 /run/lock /tmp
        : >/run/utmp
        ln -sf /proc/self/fd /dev/fd
        ln -sf fd/0 /dev/stdin
        ln -sf fd/1 /dev/stdout
        ln -sf fd/2 /dev/stderr
        dmesg -n warn
        hostname -F /etc/hostname
        modprobe -q -a virtio_net virtio_rng virtio_console virtio_balloon vmw_vsock_virtio_transport button evdev
        busybox acpid -l /dev/null
        ip link set lo up
        if [ -e /sys/class/net/eth0 ]; then
            : >/etc/resolv.conf
            # Leaves a client behind that keeps the lease; gives up waiting, not trying, after a few seconds.
            busybox udhcpc -b -S -t 3 -T 1 -i eth0 -s /usr/lib/roost/dhcp -p /run/udhcpc.pid >/dev/null 2>&1
        fi

        # The console's getty: which terminal, and what kind, the kernel's command line says.
        console=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^console=\([^,]*\).*/\1/p' | tail -n 1)
        term=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^TERM=//p' | tail -n 1)
        [ -c "/dev/$console" ] || console=console
        infocmp "$term" >/dev/null 2>&1 || term=xterm-256color
        cat >/run/console <<end
        CONSOLE=$console
        TERM=$term
        end
        # Disks and drives that are attached while it runs.
        modprobe -q -a virtio_scsi sd_mod sr_mod &
        """#

    private static let login = #"""
        #!/bin/sh
        # Root's login on the console; the guest is the person's own.
        exec login -f root
        """#

    private static let console = #"""
        #!/bin/sh
        # A login shell on the console, again each time it ends.
        . /run/console
        size=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^roost\.terminal=//p' | tail -n 1)
        [ -z "$size" ] || stty -F "/dev/$CONSOLE" cols "${size%x*}" rows "${size#*x}" 2>/dev/null
        exec busybox getty -n -i -L -l /usr/lib/roost/login 115200 "$CONSOLE" "$TERM"
        """#

    private static let stop = #"""
        #!/bin/sh
        # Takes the system down: programs end, the disk is whole.
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin
        trap '' TERM HUP
        kill -TERM -1
        sleep 0.3
        kill -KILL -1
        sync
        mount -o remount,ro /
        """#

    private static let shutdown = #"""
        #!/bin/sh
        # shutdown -h now, shutdown -r now: what the word says, at once.
        case " $* " in
            *" -r "*) exec /sbin/reboot;;
            *) exec /sbin/poweroff;;
        esac
        """#

    private static var dhcp: String { EarlyUserSpace.dhcpScript }

    private static let agentUnit = """
        [Unit]
        Description=Roost's agent
        ConditionPathExists=/sys/bus/virtio
        [Service]
        ExecStart=/usr/lib/roost/agent
        Restart=always
        RestartSec=1
        OOMScoreAdjust=-900
        """

    /// Units of no use in a guest that is looked at through its console and upgraded by hand.
    private static let masked = [
        "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service",
        "getty@tty1.service",
    ]

    private var systemd: [(String, Entry)] {
        [
            (
                "/etc/systemd/network/10-wired.network",
                .file("[Match]\nName=eth* en*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nUseDomains=yes", mode: 0o644)
            ),
            ("/etc/systemd/system/roost-agent.service", .file(Self.agentUnit, mode: 0o644)),
            (
                "/etc/systemd/system/multi-user.target.wants/roost-agent.service",
                .link("/etc/systemd/system/roost-agent.service")
            ),
            // A machine with an identity is past its first boot: no presets to run.
            (
                "/etc/machine-id",
                .file(UUID().uuidString.replacingOccurrences(of: "-", with: "").lowercased(), mode: 0o444)
            ),
            (
                "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
                .link("/lib/systemd/system/systemd-networkd.service")
            ),
            (
                "/etc/systemd/system/sockets.target.wants/systemd-networkd.socket",
                .link("/lib/systemd/system/systemd-networkd.socket")
            ),
            (
                "/etc/systemd/system/multi-user.target.wants/systemd-resolved.service",
                .link("/lib/systemd/system/systemd-resolved.service")
            ),
            ("/etc/resolv.conf", .link("/run/systemd/resolve/stub-resolv.conf")),
            (
                "/etc/modules-load.d/roost.conf",
                .file("virtio_net\nvirtio_rng\nvmw_vsock_virtio_transport", mode: 0o644)
            ),
        ] + Self.masked.map { ("/etc/systemd/system/" + $0, .link("/dev/null")) }
    }
}
