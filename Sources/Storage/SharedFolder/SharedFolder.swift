// A folder of the host that a guest mounts: a FUSE server.
//
// The guest names files by numbers that it was given. A number stands for a name in a folder whose number is known; the
// file there is found again from the top, a name at a time, and must be the one that the guest looked up. So nothing but
// what lies in the folder can be reached, whatever the guest says, and descriptors are few however much it knows.
public import HostOS
internal import Synchronization

/// A shared folder.
public final class SharedFolder: Sendable {
    /// The number of the folder itself.
    static let root: UInt64 = 1
    /// Files that a guest may know.
    static let mostNodes = 1 << 18
    /// Bytes in one read or write.
    static let mostBytes = 1 << 20
    /// Seconds that a guest may believe names and attributes.
    static let validity: UInt64 = 1

    struct Node: Sendable {
        var parent: UInt64
        var name: [UInt8]
        var identity: [UInt64]
        var lookups: UInt64
        var place: FolderPlace?
    }

    final class OpenFile: Sendable {
        let file: FileDescriptor
        init(_ file: consuming FileDescriptor) { self.file = file }
    }

    enum Opened: Sendable {
        case file(OpenFile)
        case folder(FolderReader)
    }

    struct Handle: Sendable {
        var node: UInt64
        var flags: Int32
        var opened: Opened
    }

    /// The place of a file that is open, which stays its place when it has no name any more.
    struct HeldPlace: Sendable {
        var place: FolderPlace
        var handles = 1
    }

    /// All that a guest knows. One request at a time is served.
    struct Contents: Sendable {
        var nodes: [UInt64: Node] = [:]
        var numbers: [[UInt64]: UInt64] = [:]
        var handles: [UInt64: Handle] = [:]
        /// Of the numbers that have handles.
        var held: [UInt64: HeldPlace] = [:]
        var nextNode: UInt64 = 2
        var nextHandle: UInt64 = 1
        /// Numbers whose places are open, oldest first.
        var placed: [UInt64] = []
    }

    let top: FolderPlace
    let isReadOnly: Bool
    /// Files that a guest may have open; places kept open.
    let mostHandles, mostPlaces: Int
    let contents = Mutex(Contents())

    /// Shares the folder at a path; `share` is how many have the descriptors together that one has alone.
    public init(path: String, isReadOnly: Bool, share: Int = 1) throws(HostError) {
        top = try FolderPlace(folder: path)
        self.isReadOnly = isReadOnly
        mostHandles = max(64, min(FileDescriptor.raiseLimit() / 4, 4096) / max(1, share))
        mostPlaces = 512 / max(1, min(share, 16))
    }

    /// Forgets all that the guest knows.
    public func reset() { contents.withLock { $0 = Contents() } }

    /// Answers a request; nothing if it wants no answer. Of what the guest reads, at most so many bytes are wanted.
    public func answer(_ bytes: [UInt8], room: Int) -> [UInt8]? {
        guard var request = FUSERequest(bytes) else { return nil }
        let unique = request.unique
        guard let operation = request.operation else {
            return FUSEReply.message(unique, error: FUSEError.notImplemented.errno)
        }
        return contents.withLock { contents in
            do {
                let reply = try perform(operation, &request, &contents, room: room - FUSEReply.headerLength)
                return reply.map { FUSEReply.message(unique, $0.bytes) }
            } catch let error as FUSEError {
                return FUSEReply.message(unique, error: error.errno)
            } catch {
                return FUSEReply.message(unique, error: (error as? HostError)?.errno ?? FUSEError.invalid.errno)
            }
        }
    }

    private func perform(
        _ operation: FUSEOperation, _ request: inout FUSERequest, _ contents: inout Contents, room: Int
    ) throws -> FUSEReply? {
        if isReadOnly, operation.changes { throw FUSEError.readOnly }
        switch operation {
        case .initialize:
            contents = Contents()
            return try request.agree()
        case .forget, .batchForget: return forget(operation, &request, &contents)
        case .interrupt: return nil
        case .destroy:
            contents = Contents()
            return FUSEReply()
        case .lookUp: return try lookUp(try request.text(), in: request.node, &contents)
        case .getAttributes: return try getAttributes(&request, &contents)
        case .setAttributes: return try setAttributes(&request, &contents)
        case .readLink:
            var reply = FUSEReply()
            reply.data(try place(request.node, &contents).linkText())
            return reply
        case .fileSystemStatus: return try fileSystemStatus()
        case .open, .openFolder: return try open(&request, &contents, isFolder: operation == .openFolder)
        case .read, .readFolder, .write, .release, .releaseFolder, .flush, .synchronize, .synchronizeFolder,
            .changeRoom, .seek:
            return try use(operation, &request, &contents, room: room)
        default: return try change(operation, &request, &contents)
        }
    }
}

extension FUSERequest {
    /// Agrees on the protocol: the answer to a guest that begins.
    mutating func agree() throws(FUSEError) -> FUSEReply {
        let (major, minor, readAhead, flags) = (try word(), try word(), try word(), try word())
        var reply = FUSEReply()
        reply.word(7)
        reply.word(31)
        // A guest that speaks a later major version asks again; an older minor one isn't served.
        guard major == 7 else {
            reply.zeroes(56)
            return reply
        }
        guard minor >= 31 else { throw .notSupported }
        reply.word(min(readAhead, UInt32(SharedFolder.mostBytes)))
        // ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES, AUTO_INVAL_DATA, PARALLEL_DIROPS, MAX_PAGES.
        reply.word(flags & (1 << 0 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 18 | 1 << 22))
        // max_background 16, congestion_threshold 16, max_write, time_gran, max_pages 16.
        reply.word(64 | 48 << 16)
        reply.word(UInt32(SharedFolder.mostBytes))
        reply.word(1)
        reply.word(UInt32(SharedFolder.mostBytes / 4096))
        reply.zeroes(32)
        return reply
    }
}

extension FUSEOperation {
    /// Whether it is refused where nothing may be written.
    fileprivate var changes: Bool {
        switch self {
        case .setAttributes, .makeSymbolicLink, .makeNode, .makeFolder, .removeFile, .removeFolder, .rename, .link,
            .write, .create, .changeRoom, .renameWithFlags:
            true
        default: false
        }
    }
}
