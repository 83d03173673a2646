// Several folders of the host behind one file system of a guest's, which come and go while it is mounted.
//
//   /N      a folder, N being its number
//   /N.at   a symbolic link whose text is where the guest is to have it
//
// Each folder has a `SharedFolder` of its own: its numbers of files, its limits, and whether it may be written are its own,
// and nothing leads from one into another. A file's number is its folder's in the upper 16 bits, and in the lower 48 the
// number that it has there; 0 there is the link. A number is given once as long as the machine's memory lasts.
public import DeviceModel
public import HostOS
internal import Synchronization

/// Folders of the host that a guest has by one file system.
public final class MountedFolders: Sendable {
    /// Folders at one time; together they may open as many files as a shared folder twice.
    public static let most = 16
    private static let shift: UInt64 = 48
    private static let lower: UInt64 = (1 << shift) - 1
    private static let highestNumber: UInt64 = 0xFFFF

    private struct Mount: Sendable {
        var folder: String
        var path: String
        /// Whether the guest is to have it.
        var isListed = true
        var server: SharedFolder
    }

    private struct Contents: Sendable {
        var mounts: [UInt64: Mount] = [:]
        var next: UInt64 = 1

        func number(of path: String) -> UInt64? { mounts.first { $0.value.path == path }?.key }
    }

    private let contents = Mutex(Contents())

    /// None yet.
    public init() {}

    /// Adds a folder of the host that the guest is to have at a path of its own, which no other one has.
    public func add(_ folder: String, at path: String, isReadOnly: Bool) throws(HostError) {
        let server = try SharedFolder(path: folder, isReadOnly: isReadOnly, share: Self.most / 2)
        let isAdded = contents.withLock { contents in
            guard contents.mounts.count < Self.most, contents.next <= Self.highestNumber,
                contents.number(of: path) == nil
            else { return false }
            contents.mounts[contents.next] = Mount(folder: folder, path: path, server: server)
            contents.next += 1
            return true
        }
        if !isAdded { throw HostError("mount \(folder) at \(path)", errno: HostErrorNumber.busy) }
    }

    /// Says whether the guest is to have what is mounted at a path; what it has of it goes on.
    public func setListed(_ isListed: Bool, at path: String) {
        contents.withLock { contents in
            if let number = contents.number(of: path) { contents.mounts[number]?.isListed = isListed }
        }
    }

    /// Takes away what is mounted at a path: what the guest still has of it is stale.
    public func remove(at path: String) {
        contents.withLock { contents in
            if let number = contents.number(of: path) { contents.mounts[number] = nil }
        }
    }

    /// Forgets all that the guest knows.
    public func reset() {
        for mount in contents.withLock({ $0.mounts.values.map(\.self) }) { mount.server.reset() }
    }

    /// Answers a request, as `SharedFolder` does.
    public func answer(_ bytes: [UInt8], room: Int) -> [UInt8]? {
        guard var request = FUSERequest(bytes) else { return nil }
        let unique = request.unique
        do throws(FUSEError) {
            guard let operation = request.operation else { throw .notImplemented }
            switch operation {
            case .initialize:
                reset()
                return FUSEReply.message(unique, try request.agree().bytes)
            case .destroy:
                reset()
                return FUSEReply.message(unique)
            case .interrupt: return nil
            case .batchForget:
                forget(&request)
                return nil
            default: break
            }
            let number = request.node >> Self.shift
            guard number != 0 else {
                if operation == .forget { return nil }
                let reply = try answerTop(operation, &request, room: room - FUSEReply.headerLength)
                return FUSEReply.message(unique, reply.bytes)
            }
            guard let mount = contents.withLock({ $0.mounts[number] }) else {
                if operation == .forget { return nil }
                throw .stale
            }
            if request.node & Self.lower == 0 {
                if operation == .forget { return nil }
                return FUSEReply.message(unique, try answerLink(operation, number, mount).bytes)
            }
            return try pass(operation, request, to: mount, number, room: room)
        } catch {
            return FUSEReply.message(unique, error: error.errno)
        }
    }

    // MARK: Files of the folders

    /// Has a folder answer, which knows its files by its own numbers.
    private func pass(
        _ operation: FUSEOperation, _ request: FUSERequest, to mount: Mount, _ number: UInt64, room: Int
    ) throws(FUSEError) -> [UInt8]? {
        var bytes = request.bytes
        bytes.setLong(request.node & Self.lower, at: 0x10)
        switch operation {
        case .rename, .renameWithFlags, .link:
            // The other folder, or the file that gets one more name: nothing leads from one mount into another.
            guard let other = bytes.long(at: FUSERequest.headerLength) else { throw .invalid }
            guard other >> Self.shift == number, other & Self.lower != 0 else { throw .otherFileSystem }
            bytes.setLong(other & Self.lower, at: FUSERequest.headerLength)
        default: break
        }
        guard var answer = mount.server.answer(bytes, room: room) else { return nil }
        switch operation {
        case .lookUp, .makeNode, .makeFolder, .makeSymbolicLink, .link, .create:
            guard let file = answer.long(at: FUSEReply.headerLength) else { return answer }
            guard file <= Self.lower else { throw .noMemory }
            answer.setLong(file | number << Self.shift, at: FUSEReply.headerLength)
        default: break
        }
        return answer
    }

    /// The guest doesn't know files any more, of whichever folders.
    private func forget(_ request: inout FUSERequest) {
        guard let count = try? request.word(), (try? request.skip(4)) != nil else { return }
        let mounts = contents.withLock { $0.mounts }
        for _ in 0..<min(Int(count), request.left / 16) {
            guard let node = try? request.long(), let lookups = try? request.long() else { return }
            mounts[node >> Self.shift]?.server.forget(node & Self.lower, lookups)
        }
    }

    // MARK: What there is above them

    private func answerTop(
        _ operation: FUSEOperation, _ request: inout FUSERequest, room: Int
    ) throws(FUSEError) -> FUSEReply {
        var reply = FUSEReply()
        switch operation {
        case .lookUp: return try lookUp(try request.text())
        case .getAttributes: reply.made(inode: 1, mode: 0o40555, size: 0, isEntry: false)
        case .openFolder: reply.zeroes(16)
        case .readFolder: try list(&request, room: room, &reply)
        case .releaseFolder, .synchronizeFolder: break
        case .fileSystemStatus:
            reply.zeroes(40)
            for value: UInt32 in [4096, 255, 4096, 0] { reply.word(value) }
            reply.zeroes(24)
        default: throw .readOnly
        }
        return reply
    }

    private func lookUp(_ name: [UInt8]) throws(FUSEError) -> FUSEReply {
        let text = String(decoding: name, as: UTF8.self)
        let isLink = text.hasSuffix(".at")
        guard let number = UInt64(isLink ? text.dropLast(3) : text[...]),
            let mount = contents.withLock({ $0.mounts[number] }), mount.isListed
        else { throw .notFound }
        var reply = FUSEReply()
        if isLink {
            reply.long(number << Self.shift)
            reply.made(inode: number << Self.shift, mode: 0o120777, size: mount.path.utf8.count, isEntry: true)
        } else {
            guard let status = try? mount.server.top.status() else { throw .stale }
            reply.entry(number << Self.shift | SharedFolder.root, status)
        }
        return reply
    }

    /// Entries of the folder above, as many as fit. Each entry's place is twice its number, the link's one more.
    private func list(_ request: inout FUSERequest, room: Int, _ reply: inout FUSEReply) throws(FUSEError) {
        _ = try request.long()
        let start = try request.long()
        let size = min(Int(try request.word()), room)
        let listed = contents.withLock { $0.mounts.filter(\.value.isListed).keys.sorted() }
        for number in listed {
            for isLink in [false, true] where number << 1 + (isLink ? 1 : 0) > start {
                let name = Array("\(number)\(isLink ? ".at" : "")".utf8)
                let inode = isLink ? number << Self.shift : number
                guard
                    reply.folderEntry(
                        name, inode: inode, type: isLink ? 10 : 4, next: number << 1 + (isLink ? 1 : 0), room: size)
                else { return }
            }
        }
    }

    private func answerLink(
        _ operation: FUSEOperation, _ number: UInt64, _ mount: Mount
    ) throws(FUSEError) -> FUSEReply {
        var reply = FUSEReply()
        switch operation {
        case .readLink: reply.data(mount.path.utf8)
        case .getAttributes:
            reply.made(inode: number << Self.shift, mode: 0o120777, size: mount.path.utf8.count, isEntry: false)
        default: throw .readOnly
        }
        return reply
    }

    // MARK: State

    /// All that the guest knows, by folder.
    public func saveState() -> SharedFolderState {
        let contents = contents.withLock { $0 }
        var state = SharedFolderState()
        state.nextNode = contents.next
        state.parts = contents.mounts.sorted { $0.key < $1.key }.map { number, mount in
            SharedFolderState.Part(id: number, folder: mount.folder, path: mount.path, state: mount.server.saveState())
        }
        return state
    }

    /// Takes up what a guest knew of the folders that are there now as they were then; others are stale.
    public func restoreState(_ state: SharedFolderState) throws {
        let parts = state.parts ?? []
        guard state.version == 1, parts.count <= Self.most, state.nextNode <= Self.highestNumber,
            parts.allSatisfy({ 1..<max(state.nextNode, 1) ~= $0.id }), Set(parts.map(\.id)).count == parts.count
        else { throw StateError("the saved state of mounted folders doesn't fit") }
        try contents.withLock { contents in
            var left = contents.mounts.sorted { $0.key < $1.key }.map(\.value)
            contents.mounts = [:]
            contents.next = max(state.nextNode, 1)
            for part in parts {
                guard let index = left.firstIndex(where: { $0.path == part.path && $0.folder == part.folder }) else {
                    continue
                }
                let mount = left.remove(at: index)
                try mount.server.restoreState(part.state)
                contents.mounts[part.id] = mount
            }
            for mount in left where contents.next <= Self.highestNumber {
                contents.mounts[contents.next] = mount
                contents.next += 1
            }
        }
    }
}

extension FUSEReply {
    /// Attributes of what isn't a file of the host's; with an entry's times before them, or an answer's.
    fileprivate mutating func made(inode: UInt64, mode: UInt32, size: Int, isEntry: Bool) {
        if isEntry {
            long(0)
            long(SharedFolder.validity)
        }
        long(SharedFolder.validity)
        zeroes(8)
        long(inode)
        long(UInt64(size))
        zeroes(8 + 24 + 12)
        for value in [mode, 1, 0, 0, 0, 4096, 0] as [UInt32] { word(value) }
    }
}
