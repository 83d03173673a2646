// Several folders behind one file system: nothing leads from one into another, whatever a guest says, and they come and go.
import DeviceModel
import Foundation
import Glibc
import Storage
import Testing

@Suite("Mounted folders") struct MountedFoldersTests {
    private let scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID())").path
    private let mounts = MountedFolders()
    private let first: UInt64 = 1 << 48 | 1
    private let second: UInt64 = 2 << 48 | 1
    private let request = [UInt8](repeating: 0, count: 16)

    /// One folder that may be written, and one, within it, that is only to be read.
    init() throws {
        try FileManager.default.createDirectory(atPath: scratch + "/inner", withIntermediateDirectories: true)
        for name in ["/file", "/inner/kept"] {
            try Data("plain".utf8).write(to: URL(fileURLWithPath: scratch + name))
        }
        try mounts.add(scratch, at: "/a", isReadOnly: false)
        try mounts.add(scratch + "/inner", at: "/b c", isReadOnly: true)
        #expect(call(26, 0, little(UInt32(7)) + little(UInt32(36)) + little(UInt64(0))).error == 0)
    }

    private func call(
        _ operation: UInt32, _ node: UInt64, _ arguments: [UInt8], _ server: MountedFolders? = nil
    ) -> (error: Int32, data: [UInt8]) {
        let request =
            little(UInt32(40 + arguments.count)) + little(operation) + little(UInt64(9)) + little(node)
            + [UInt8](repeating: 0, count: 16) + arguments
        guard let answer = (server ?? mounts).answer(request, room: 1 << 16) else { return (0, []) }
        let error = (0..<4).reduce(UInt32(0)) { $0 | UInt32(answer[4 + $1]) << UInt32($1 * 8) }
        return (-Int32(bitPattern: error), Array(answer[16...]))
    }

    private func number(_ data: [UInt8], _ offset: Int = 0) -> UInt64 {
        data.count < offset + 8 ? 0 : (0..<8).reduce(0) { $0 | UInt64(data[offset + $1]) << UInt64($1 * 8) }
    }

    private func lookUp(_ name: String, _ node: UInt64 = 1) -> UInt64 { number(call(1, node, text(name)).data) }

    private func open(_ node: UInt64, _ flags: Int32 = 0) -> (error: Int32, handle: UInt64) {
        let (error, data) = call(14, node, little(flags) + little(UInt32(0)))
        return (error, number(data))
    }

    private func read(_ node: UInt64, _ handle: UInt64) -> (error: Int32, data: [UInt8]) {
        call(15, node, little(handle) + little(UInt64(0)) + little(UInt32(100)) + [UInt8](repeating: 0, count: 20))
    }

    private func names() -> [String] {
        let entries = call(28, 1, little(UInt64(0)) + little(UInt64(0)) + little(UInt32(4096)) + request).data
        var (place, names): (Int, [String]) = (0, [])
        while place + 24 <= entries.count {
            let length = Int(number(entries, place + 16) & 0xFFFF)
            names.append(String(decoding: entries[(place + 24)..<(place + 24 + length)], as: UTF8.self))
            place += 24 + (length + 7) & ~7
        }
        return names
    }

    @Test("are listed with where they are to be, and nothing can be done to the list")
    func list() {
        #expect(names() == ["1", "1.at", "2", "2.at"])
        #expect(lookUp("1") == first && lookUp("2") == second)
        #expect(call(5, lookUp("2.at"), []).data == Array("/b c".utf8))
        for name in ["0", "3", "-1", "1.", ".at", "1.at.at", "..", "18446744073709551616", "65537"] {
            #expect(call(1, 1, text(name)).error == ENOENT, "\(name)")
        }
        let zeroes = [UInt8](repeating: 0, count: 100)
        for operation in [4, 6, 8, 9, 10, 11, 12, 13, 16, 35, 45] as [UInt32] {
            #expect(call(operation, 1, zeroes).error != 0, "\(operation)")
            #expect(call(operation, 1 << 48, zeroes).error != 0, "the link: \(operation)")
        }
        #expect(call(3, 1, request).error == 0 && call(17, 1, []).error == 0)
    }

    @Test("a file of one can't be renamed, linked or opened by the other: what is only to be read stays so")
    func crossing() throws {
        let kept = lookUp("kept", second)
        let file = lookUp("file", first)
        #expect(kept >> 48 == 2 && file >> 48 == 1)
        // A link in the folder that may be written would give the right to write.
        #expect(call(13, first, little(kept) + text("stolen")).error == EXDEV)
        #expect(call(13, first, little(UInt64(1)) + text("stolen")).error == EXDEV)
        #expect(call(13, first, little(UInt64(1) << 48) + text("stolen")).error == EXDEV)
        #expect(call(12, first, little(second) + text("file") + text("file")).error == EXDEV)
        #expect(call(45, first, little(second) + little(UInt64(0)) + text("file") + text("file")).error == EXDEV)
        #expect(call(12, second, little(first) + text("kept") + text("kept")).error == EXDEV)
        #expect(open(kept, 2).error == EROFS)
        // The same file by the outer folder is another number, with that one's rights.
        let outer = lookUp("kept", lookUp("inner", first))
        #expect(outer >> 48 == 1 && outer != kept && open(outer, 2).error == 0 && open(kept, 2).error == EROFS)
        // A number that was given by the one, said of the other; an open file likewise.
        let forged = file & (1 << 48 - 1) | 2 << 48
        if open(forged).error == 0 { #expect(open(forged, 2).error == EROFS) }
        #expect(call(1, first, text("file")).error == 0)
        let opened = open(outer, 2)
        let write = little(opened.handle) + little(UInt64(0)) + little(UInt32(1)) + [UInt8](repeating: 0, count: 20)
        #expect(call(16, kept, write + [65]).error == EROFS)
        #expect(try String(contentsOfFile: scratch + "/inner/kept", encoding: .utf8) == "plain")
    }

    @Test("one that is taken away is stale, its number isn't given again, and the others go on")
    func removal() throws {
        let kept = lookUp("kept", second)
        let opened = open(kept)
        mounts.setListed(false, at: "/b c")
        #expect(names() == ["1", "1.at"] && call(1, 1, text("2")).error == ENOENT)
        #expect(read(kept, opened.handle).data == Array("plain".utf8))
        mounts.setListed(true, at: "/b c")
        #expect(names().count == 4)
        mounts.remove(at: "/b c")
        #expect(read(kept, opened.handle).error == ESTALE && open(kept).error == ESTALE)
        #expect(call(3, second, request).error == ESTALE)
        try mounts.add(scratch, at: "/b c", isReadOnly: false)
        #expect(names() == ["1", "1.at", "3", "3.at"])
        #expect(open(kept).error == ESTALE && open(lookUp("file", 1 << 48 | 1)).error == 0)
        #expect(throws: (any Error).self) { try mounts.add(scratch, at: "/a", isReadOnly: false) }
        for n in 4...17 { try mounts.add(scratch, at: "/\(n)", isReadOnly: false) }
        #expect(throws: (any Error).self) { try mounts.add(scratch, at: "/more", isReadOnly: false) }
    }

    @Test("a restored guest goes on with those that are there as they were, and finds the others stale")
    func restore() throws {
        let (file, kept) = (lookUp("file", first), lookUp("kept", second))
        let opened = open(kept)
        let state = try JSONDecoder().decode(
            SharedFolderState.self, from: try JSONEncoder().encode(mounts.saveState()))
        let again = MountedFolders()
        try again.add("/usr/share", at: "/new", isReadOnly: true)
        try again.add(scratch + "/inner", at: "/b c", isReadOnly: true)
        // Another folder at the same place isn't the one that was there.
        try again.add(scratch + "/inner", at: "/a", isReadOnly: false)
        try again.restoreState(state)
        let bytes = little(opened.handle) + little(UInt64(0)) + little(UInt32(100)) + [UInt8](repeating: 0, count: 20)
        #expect(call(15, kept, bytes, again).data == Array("plain".utf8))
        #expect(call(14, file, little(UInt64(0)), again).error == ESTALE)
        #expect(number(call(1, 1, text("3"), again).data) == 3 << 48 | 1)
        #expect(again.saveState().nextNode == 5)
    }

    @Test("states that can't be are refused")
    func badStates() throws {
        let good = mounts.saveState()
        func refuse(_ change: (inout SharedFolderState) -> Void) {
            var state = good
            change(&state)
            #expect(throws: (any Error).self) { try mounts.restoreState(state) }
        }
        refuse { $0.version = 2 }
        refuse { $0.nextNode = .max }
        refuse { $0.nextNode = 2 }
        refuse { $0.parts?[0].id = 0 }
        refuse { $0.parts?[0].id = 2 }
        refuse { $0.parts?[0].id = 1 << 60 }
        refuse { state in state.parts = Array(repeating: good.parts![0], count: 17) }
        // Numbers of files that would be another folder's.
        var state = good
        state.parts?[0].state.nextNode = 2 << 48
        try mounts.restoreState(state)
        #expect(call(1, first, text("file")).error == ENOMEM)
        try mounts.restoreState(good)
        #expect(call(1, first, text("file")).error == 0)
    }
}
