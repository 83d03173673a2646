// A folder of the host's in a guest, with Debian's own virtiofs: GuestTests/files.c checks each operation there, and the
// host looks at what came of it.
import Foundation
import Glibc
import Testing

@Suite("Folders shared with a guest", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct SharedFolderGuestTests {
    private let guest: ScriptGuest

    init() throws {
        guest = try ScriptGuest(modules: ["virtiofs"], programs: ["files"])
        try FileManager.default.createDirectory(atPath: guest.scratch + "/share", withIntermediateDirectories: false)
        try Data("written by the host\n".utf8).write(to: URL(fileURLWithPath: guest.scratch + "/share/from-host"))
    }

    @Test("take every operation on files, and the host sees the same")
    func operations() throws {
        let output = try guest.shell(
            """
            (guest 'mount -t virtiofs work /mnt; files /mnt; files /mnt random 12345 600; umount /mnt' \\
                --share share,tag=work)
            cd share; cmp random copy && echo same; ls many | wc -l; cat mapped moved/deep; echo; readlink outside
            stat -c '%a %Y' a
            """)
        #expect(output.contains("FILES ok ") && output.contains("FILES random 600"), "\(output.suffix(3000))")
        #expect(!output.contains("FAIL"))
        let tail = output.components(separatedBy: "GUEST DONE").last ?? ""
        for line in ["same", "10000", "Mapped textdeep", "/proc/self/status", "640 "] {
            #expect(tail.contains(line), "\(line): \(tail)")
        }
    }

    @Test("two at once, one of them only to be read; what the host changes shows")
    func two() throws {
        let output = try guest.shell(
            """
            mkdir other; echo two >other/name
            guest 'mkdir /w; mount -t virtiofs share /mnt; mount -t virtiofs b /w; files /mnt readonly; cat /w/name; '`
                `'touch /w/ready; while ! grep -q changed /w/name; do sleep 1; done; echo SEEN; rm /w/name' \\
                --share share,readonly --share other,tag=b >console & machine=$!
            for i in $(seq 600); do [ -e other/ready ] && break; sleep 0.1; done
            echo changed >other/name; wait $machine; cat console; ls other
            """)
        #expect(output.contains("FILES readonly") && output.contains("SEEN"), "\(output.suffix(3000))")
        #expect(output.hasSuffix("ready\n"), "\(output.suffix(300))")
    }

    @Test("misspelled, missing or the same twice are refused")
    func refused() throws {
        for word in ["", ",tag=a", "x,tag=", "x,rw", "x,tag=" + String(repeating: "a", count: 37)] {
            let run = try RoostRun(["run", "--kernel", "/dev/null", "--share", word])
            #expect(run.status == 64 && run.error.contains("--share"), "\(word): \(run.status) \(run.error)")
        }
        let options = ["run", "--kernel", guest.options(run: "")[2], "--net", "none", "--share"]
        let missing = try RoostRun(options + ["/nonexistent"])
        #expect(missing.status == 68 && missing.error.contains("/nonexistent"), "\(missing.status) \(missing.error)")
        let twice = try RoostRun(options + [guest.scratch, "--share", guest.scratch])
        #expect(twice.status == 68 && twice.error.contains("tag=NAME"), "\(twice.status) \(twice.error)")
    }
}
