// A hostile client of a shared folder, alone and as one of several: nothing outside can be reached, and what it may hold is
// bounded.
import DeviceModel
import Foundation
import Glibc
import Storage
import Testing

/// Bytes of a FUSE message, <linux/fuse.h>.
func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
}

func text(_ name: String) -> [UInt8] { Array(name.utf8) + [0] }

/// What answers.
protocol TestedServer: AnyObject {
    func answer(_ bytes: [UInt8], room: Int) -> [UInt8]?
    func reset()
    func saveState() -> SharedFolderState
    func restoreState(_ state: SharedFolderState) throws
}

extension SharedFolder: TestedServer {}
extension MountedFolders: TestedServer {}

/// A guest that says what it likes.
final class Client {
    let outside = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID())").path
    let path: String
    let folder: any TestedServer
    /// The folder's number.
    let top: UInt64

    /// A folder with a few files, alone or the second of several.
    init(isReadOnly: Bool = false, isMounted: Bool = false) throws {
        path = outside + "/shared"
        try FileManager.default.createDirectory(atPath: path + "/sub", withIntermediateDirectories: true)
        for name in [outside + "/secret", path + "/file", path + "/sub/deep"] {
            try Data(name.hasSuffix("secret") ? "secret".utf8 : "plain".utf8).write(to: URL(fileURLWithPath: name))
        }
        symlink("../secret", path + "/leads-out")
        symlink(outside, path + "/folder-out")
        top = isMounted ? 2 << 48 | 1 : 1
        folder = try Self.server(path, isReadOnly, isMounted)
        #expect(call(26, 0, little(UInt32(7)) + little(UInt32(36)) + little(UInt64(0))).error == 0)
    }

    deinit { try? FileManager.default.removeItem(atPath: outside) }

    static func server(_ path: String, _ isReadOnly: Bool, _ isMounted: Bool) throws -> any TestedServer {
        guard isMounted else { return try SharedFolder(path: path, isReadOnly: isReadOnly) }
        let mounts = MountedFolders()
        try mounts.add("/usr/share", at: "/first", isReadOnly: true)
        try mounts.add(path, at: "/second", isReadOnly: isReadOnly)
        try mounts.add("/etc", at: "/third", isReadOnly: true)
        return mounts
    }

    func call(_ operation: UInt32, _ node: UInt64, _ arguments: [UInt8]) -> (error: Int32, data: [UInt8]) {
        let request =
            little(UInt32(40 + arguments.count)) + little(operation) + little(UInt64(77)) + little(node)
            + [UInt8](repeating: 0, count: 16) + arguments
        guard let answer = folder.answer(request, room: 1 << 17) else { return (0, []) }
        #expect(answer.count >= 16 && answer.count <= 1 << 17 && Array(answer[8..<16]) == little(UInt64(77)))
        return (-number(answer, 4, as: Int32.self), Array(answer[16...]))
    }

    func number<T: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, as type: T.Type = T.self) -> T {
        guard bytes.count >= offset + T.bitWidth / 8 else { return 0 }
        return (0..<T.bitWidth / 8).reduce(0) { $0 | T(truncatingIfNeeded: bytes[offset + $1]) << T($1 * 8) }
    }

    /// Looks a name up; zero if it isn't there.
    func lookUp(_ name: String, in folder: UInt64? = nil) -> UInt64 {
        let (error, data) = call(1, folder ?? top, text(name))
        return error == 0 ? number(data, 0) : 0
    }

    func open(_ node: UInt64, flags: Int32 = 0, operation: UInt32 = 14) -> (error: Int32, handle: UInt64) {
        let (error, data) = call(operation, node, little(flags) + little(UInt32(0)))
        return (error, number(data, 0))
    }

    func read(_ handle: UInt64, operation: UInt32 = 15) -> (error: Int32, data: [UInt8]) {
        call(
            operation, top,
            little(handle) + little(UInt64(0)) + little(UInt32(65536)) + [UInt8](repeating: 0, count: 20))
    }

    var secret: String { (try? String(contentsOfFile: outside + "/secret", encoding: .utf8)) ?? "gone" }
}

@Suite("Shared folders", .serialized) struct SharedFolderTests {
    private func nodes(_ state: SharedFolderState) -> [SharedFolderState.Node] {
        state.nodes + (state.parts ?? []).flatMap(\.state.nodes)
    }

    @Test("what is inside can be looked up, opened and read", arguments: [false, true])
    func inside(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let deep = client.lookUp("deep", in: client.lookUp("sub"))
        #expect(deep > 1)
        let opened = client.open(deep)
        #expect(opened.error == 0 && client.read(opened.handle).data == Array("plain".utf8))
    }

    @Test(
        "names that lead elsewhere are not names",
        arguments: ["..", ".", "", "../secret", "sub/deep", "/etc/passwd", "sub/../../secret"], [false, true])
    func names(name: String, isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        #expect(client.call(1, client.top, text(name)).error == ENOENT)
        for (operation, arguments) in [
            (8, little(UInt32(S_IFREG | 0o600)) + [UInt8](repeating: 0, count: 12) + text(name)),
            (9, little(UInt64(0o700)) + text(name)), (6, text(name) + text("x")), (10, text(name)), (11, text(name)),
            (12, little(client.top) + text("file") + text(name)),
            (12, little(client.top) + text(name) + text("stolen")),
            (45, little(client.top) + little(UInt64(0)) + text(name) + text("stolen")),
            (13, little(client.lookUp("file")) + text(name)),
            (35, little(UInt32(0o101)) + little(UInt32(0o600)) + little(UInt64(0)) + text(name)),
        ] as [(UInt32, [UInt8])] {
            #expect(client.call(operation, client.top, arguments).error != 0, "\(operation) \(name)")
        }
        #expect(client.secret == "secret")
        #expect(FileManager.default.fileExists(atPath: client.path + "/file"))
        #expect(!FileManager.default.fileExists(atPath: client.path + "/stolen"))
    }

    @Test(
        "symbolic links are text: nothing behind them is opened, listed, truncated or made", arguments: [false, true])
    func links(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let (link, folder) = (client.lookUp("leads-out"), client.lookUp("folder-out"))
        #expect(client.call(5, link, []).data == Array("../secret".utf8))
        #expect(client.open(link).error == EINVAL)
        #expect(client.open(folder, operation: 27).error != 0)
        #expect(client.lookUp("secret", in: folder) == 0)
        #expect(
            client.call(35, folder, little(UInt32(0o101)) + little(UInt32(0o600)) + little(UInt64(0)) + text("x")).error
                != 0)
        #expect(
            client.call(
                35, client.top, little(UInt32(0o1)) + little(UInt32(0o600)) + little(UInt64(0)) + text("leads-out")
            )
            .error == ELOOP)
        // Size and permissions through the link.
        var attributes = little(UInt32(8 | 1)) + [UInt8](repeating: 0, count: 84)
        attributes[68] = 0xFF
        #expect(client.call(4, link, attributes).error != 0)
        attributes[0] = 8
        #expect(client.call(4, link, attributes).error != 0)
        #expect(client.secret == "secret")
    }

    @Test(
        "a file that became a link to the outside after it was looked up stays what it was, or is stale",
        arguments: [false, true])
    func race(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let (file, sub) = (client.lookUp("file"), client.lookUp("sub"))
        let deep = client.lookUp("deep", in: sub)
        unlink(client.path + "/file")
        symlink("../secret", client.path + "/file")
        rename(client.path + "/sub", client.path + "/elsewhere")
        symlink(client.outside, client.path + "/sub")
        for node in [file, deep] {
            let opened = client.open(node)
            if opened.error == 0 { #expect(client.read(opened.handle).data == Array("plain".utf8)) }
        }
        #expect(client.lookUp("secret", in: sub) == 0)
        // Found again from the top, after a restore.
        let again = try Client.server(client.path, false, isMounted)
        try again.restoreState(client.folder.saveState())
        #expect(nodes(again.saveState()).count == nodes(client.folder.saveState()).count)
    }

    @Test("a guest goes on with its files and open files after a restore", arguments: [false, true])
    func restore(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let deep = client.lookUp("deep", in: client.lookUp("sub"))
        let handle = client.open(deep).handle
        let state = client.folder.saveState()
        let own = isMounted ? try #require(state.parts?[1].state) : state
        #expect(own.nodes.count == 2 && own.handles.count == 1)
        client.folder.reset()
        #expect(client.read(handle).error == EBADF && client.open(deep).error == ESTALE)
        try client.folder.restoreState(state)
        #expect(client.read(handle).data == Array("plain".utf8))
        #expect(client.open(deep).error == 0)
        #expect(client.folder.saveState().nextNode == state.nextNode)
    }

    @Test("the folder above isn't told of, devices and set-user-ID aren't made", arguments: [false, true])
    func privileges(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let opened = client.open(client.top, operation: 27)
        let entries = client.read(opened.handle, operation: 28).data
        var place = 0
        var names: [String] = []
        while place + 24 <= entries.count {
            let length = Int(client.number(entries, place + 16, as: UInt32.self))
            names.append(String(decoding: entries[(place + 24)..<(place + 24 + length)], as: UTF8.self))
            if names.last == ".." { #expect(client.number(entries, place, as: UInt64.self) == 1) }
            place += 24 + (length + 7) & ~7
        }
        #expect(Set(names) == [".", "..", "file", "sub", "leads-out", "folder-out"])
        let rest = [UInt8](repeating: 0, count: 12)
        for kind in [S_IFBLK, S_IFCHR] {
            #expect(client.call(8, client.top, little(UInt32(kind | 0o600)) + rest + text("device")).error == EPERM)
        }
        #expect(client.call(8, client.top, little(UInt32(S_IFREG | 0o6755)) + rest + text("tool")).error == 0)
        var status = stat()
        #expect(stat(client.path + "/tool", &status) == 0 && status.st_mode & 0o7777 == 0o755)
        #expect(client.call(8, client.top, little(UInt32(S_IFIFO | 0o600)) + rest + text("fifo")).error == 0)
        #expect(client.open(client.lookUp("fifo")).error == EINVAL, "nor does opening it wait")
        #expect(
            client.call(35, client.top, little(UInt32(0o1)) + little(UInt32(0)) + little(UInt64(0)) + text("fifo"))
                .error != 0)
    }

    @Test("a folder that is only to be read is only read", arguments: [false, true])
    func readOnly(isMounted: Bool) throws {
        let client = try Client(isReadOnly: true, isMounted: isMounted)
        let file = client.lookUp("file")
        #expect(client.open(file, flags: 2).error == EROFS && client.open(file, flags: 0o1000).error == EROFS)
        for operation in [4, 6, 8, 9, 10, 11, 12, 13, 16, 35, 43, 45] as [UInt32] {
            let error = client.call(operation, client.top, [UInt8](repeating: 0, count: 100)).error
            // Of several folders, what leads to another one is refused first.
            #expect(error == EROFS || isMounted && [12, 13, 45].contains(operation) && error == EXDEV, "\(operation)")
        }
        let opened = client.open(file)
        #expect(client.read(opened.handle).data == Array("plain".utf8))
    }

    @Test("open files are bounded, and few descriptors serve many files", arguments: [false, true])
    func bounds(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        let descriptors = { (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count) ?? 0 }
        for n in 0..<2000 { try Data().write(to: URL(fileURLWithPath: client.path + "/\(n)")) }
        let before = descriptors()
        let nodes = (0..<2000).map { client.lookUp("\($0)") }
        #expect(Set(nodes).count == 2000 && !nodes.contains(0))
        #expect(descriptors() - before < 700)
        for node in nodes { #expect(client.call(3, node, [UInt8](repeating: 0, count: 16)).error == 0) }
        var last: Int32 = 0
        for _ in 0..<5000 where last == 0 { last = client.open(nodes[0]).error }
        #expect(last == ENFILE)
        client.folder.reset()
        #expect(descriptors() - before < 50)
    }

    @Test("an open file that has no name any more is there until it is closed", arguments: [false, true])
    func nameless(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        for n in 0..<1500 { try Data().write(to: URL(fileURLWithPath: client.path + "/\(n)")) }
        let (file, deep) = (client.lookUp("file"), client.lookUp("deep", in: client.lookUp("sub")))
        let handles = [client.open(file, flags: 2).handle, client.open(file).handle, client.open(deep).handle]
        // One is removed, the other replaced; then so many others are looked up that places are given up.
        #expect(client.call(10, client.top, text("file")).error == 0)
        #expect(
            client.call(12, client.lookUp("sub"), little(client.lookUp("sub")) + text("deep") + text("x")).error == 0)
        try Data("another".utf8).write(to: URL(fileURLWithPath: client.path + "/sub/x"), options: .atomic)
        for n in 0..<1500 { _ = client.lookUp("\(n)") }
        func size(_ node: UInt64) -> UInt64? {
            let (error, data) = client.call(3, node, [UInt8](repeating: 0, count: 16))
            return error == 0 ? client.number(data, 24) : nil
        }
        #expect(size(file) == 5 && size(deep) == 5)
        // FATTR_SIZE without a handle, FATTR_MODE.
        let size2 = little(UInt32(8)) + [UInt8](repeating: 0, count: 12) + little(UInt64(2))
        #expect(client.call(4, file, size2 + [UInt8](repeating: 0, count: 64)).error == 0 && size(file) == 2)
        #expect(client.read(handles[0]).data == Array("pl".utf8))
        #expect(client.read(handles[2]).data == Array("plain".utf8))
        func close(_ handle: UInt64) { _ = client.call(18, file, little(handle) + [UInt8](repeating: 0, count: 16)) }
        close(handles[0])
        #expect(size(file) == 2)
        close(handles[1])
        #expect(size(file) == nil && size(deep) == 5)
    }

    @Test("what is appended goes to the end, pages of a mapping of the same open file to where they belong")
    func appended() throws {
        let client = try Client()
        let handle = client.open(client.lookUp("file"), flags: 0o2002).handle
        func write(_ words: String, at offset: UInt64, isCached: Bool) -> Int32 {
            let flags = little(UInt32(isCached ? 0 : 0o2002)) + little(UInt32(0))
            let start = little(handle) + little(offset) + little(UInt32(words.utf8.count))
            let request = start + little(UInt32(isCached ? 1 : 0)) + little(UInt64(0)) + flags + Array(words.utf8)
            return client.call(16, client.lookUp("file"), request).error
        }
        #expect(write("!", at: 0, isCached: false) == 0)
        #expect(write("P", at: 0, isCached: true) == 0)
        try Data("Plain! host".utf8).write(to: URL(fileURLWithPath: client.path + "/file"))
        #expect(write(" guest", at: 6, isCached: false) == 0)
        #expect(client.read(handle).data == Array("Plain! host guest".utf8))
    }

    @Test("random requests neither trap nor hang nor reach the outside", arguments: [false, true])
    func fuzz(isMounted: Bool) throws {
        let client = try Client(isMounted: isMounted)
        var state: UInt64 = 0xF05E_5EED
        func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state
        }
        let names = ["file", "sub", "deep", "leads-out", "folder-out", "..", "secret", "new", "a/b", ""].map(text)
        for round in 0..<20_000 {
            var arguments: [UInt8] = []
            for _ in 0..<(next() % 9) {
                switch next() % 4 {
                case 0: arguments += little(next() % 12)
                case 1: arguments += little(next() >> (next() % 64))
                case 2: arguments += little(UInt32(truncatingIfNeeded: next() % 1024))
                default: arguments += names[Int(next() % UInt64(names.count))]
                }
            }
            let operation = UInt32(next() % 50)
            if operation == 43 || operation == 16 || operation == 4 { arguments = Array(arguments.prefix(24)) }
            _ = client.call(operation, (isMounted ? next() % 4 << 48 : 0) | next() % 12, arguments)
            if round % 2000 == 0 { _ = client.call(26, 0, little(UInt32(7)) + little(UInt32(36)) + little(UInt64(0))) }
            // A request that is cut short, or lies about its length.
            _ = client.folder.answer(Array(little(UInt32(truncatingIfNeeded: next() % 60)) + arguments), room: 16)
        }
        #expect(client.secret == "secret")
        #expect(try FileManager.default.contentsOfDirectory(atPath: client.outside).sorted() == ["secret", "shared"])
    }
}
