// The files that a guest knows by number.
public import DeviceModel
internal import HostOS
internal import Synchronization

extension SharedFolder {
    /// Folders deep at most, where a file is found again.
    private static let deepest = 256

    /// The place of a file.
    func place(_ number: UInt64, _ contents: inout Contents) throws -> FolderPlace {
        if number == Self.root { return top }
        var way: [UInt64] = []
        var at = number
        var found = top
        while at != Self.root {
            guard let node = contents.nodes[at] else { throw FUSEError.stale }
            if let place = node.place ?? contents.held[at]?.place {
                found = place
                break
            }
            way.append(at)
            guard way.count <= Self.deepest else { throw FUSEError.stale }
            at = node.parent
        }
        for next in way.reversed() {
            guard let node = contents.nodes[next], let place = try? found.child(node.name),
                let status = try? place.status(), status.identity == node.identity
            else { throw FUSEError.stale }
            found = place
            keep(place, next, &contents)
        }
        return found
    }

    /// Keeps a place open; the oldest go.
    private func keep(_ place: FolderPlace, _ number: UInt64, _ contents: inout Contents) {
        contents.nodes[number]?.place = place
        contents.placed.append(number)
        guard contents.placed.count > mostPlaces else { return }
        for old in contents.placed.prefix(mostPlaces / 2) where old != number { contents.nodes[old]?.place = nil }
        contents.placed.removeFirst(mostPlaces / 2)
    }

    /// Looks a name up and gives the file a number.
    func lookUp(_ name: [UInt8], in folder: UInt64, _ contents: inout Contents) throws -> FUSEReply {
        guard FolderPlace.isName(name) else { throw FUSEError.notFound }
        let place = try place(folder, &contents).child(name)
        let status = try place.status()
        var reply = FUSEReply()
        reply.entry(try number(of: place, status, name, in: folder, &contents), status)
        return reply
    }

    private func number(
        of place: FolderPlace, _ status: FileStatus, _ name: [UInt8], in folder: UInt64, _ contents: inout Contents
    ) throws -> UInt64 {
        let identity = status.identity
        if let top = try? top.status(), top.identity == identity { return Self.root }
        if let known = contents.numbers[identity], contents.nodes[known] != nil {
            contents.nodes[known]?.lookups &+= 1
            contents.nodes[known]?.parent = folder
            contents.nodes[known]?.name = name
            return known
        }
        guard contents.nodes.count < Self.mostNodes else { throw FUSEError.noMemory }
        let number = contents.nextNode
        contents.nextNode &+= 1
        contents.nodes[number] = Node(parent: folder, name: name, identity: identity, lookups: 1)
        contents.numbers[identity] = number
        keep(place, number, &contents)
        return number
    }

    /// The guest doesn't know files any more.
    func forget(_ operation: FUSEOperation, _ request: inout FUSERequest, _ contents: inout Contents) -> FUSEReply? {
        if operation == .forget {
            if let count = try? request.long() { forget(request.node, count, &contents) }
            return nil
        }
        guard let count = try? request.word(), (try? request.skip(4)) != nil else { return nil }
        for _ in 0..<min(Int(count), request.left / 16) {
            guard let number = try? request.long(), let lookups = try? request.long() else { break }
            forget(number, lookups, &contents)
        }
        return nil
    }

    /// The guest has forgotten that it looked a file up so often.
    func forget(_ number: UInt64, _ count: UInt64) { contents.withLock { forget(number, count, &$0) } }

    private func forget(_ number: UInt64, _ count: UInt64, _ contents: inout Contents) {
        guard let node = contents.nodes[number] else { return }
        if node.lookups > count {
            contents.nodes[number]?.lookups = node.lookups - count
        } else {
            contents.nodes[number] = nil
            if contents.numbers[node.identity] == number { contents.numbers[node.identity] = nil }
        }
    }

    /// A file has another name now.
    func moved(
        _ name: [UInt8], _ folder: UInt64, to other: [UInt8], _ target: UInt64, _ contents: inout Contents
    ) {
        // Its number finds it by the new name; who else has it looked up will look again.
        guard let place = try? place(target, &contents).child(other), let status = try? place.status(),
            let number = contents.numbers[status.identity]
        else { return }
        contents.nodes[number]?.parent = target
        contents.nodes[number]?.name = other
    }

    // MARK: State

    /// All that the guest knows.
    public func saveState() -> SharedFolderState {
        contents.withLock { contents in
            var state = SharedFolderState()
            state.nodes = contents.nodes.sorted { $0.key < $1.key }.map { id, node in
                SharedFolderState.Node(id: id, parent: node.parent, lookups: node.lookups, name: node.name)
            }
            state.handles = contents.handles.sorted { $0.key < $1.key }.map { id, handle in
                var isFolder = false
                if case .folder = handle.opened { isFolder = true }
                return SharedFolderState.Handle(id: id, node: handle.node, flags: handle.flags, isFolder: isFolder)
            }
            (state.nextNode, state.nextHandle) = (contents.nextNode, contents.nextHandle)
            return state
        }
    }

    /// Takes up what a guest knew. What isn't there any more is stale.
    public func restoreState(_ state: SharedFolderState) throws {
        guard state.version == 1, state.nodes.count <= Self.mostNodes, state.handles.count <= mostHandles else {
            throw StateError("the saved state of a shared folder doesn't fit")
        }
        contents.withLock { contents in
            contents = Contents()
            (contents.nextNode, contents.nextHandle) = (max(state.nextNode, 2), max(state.nextHandle, 1))
            for node in state.nodes where node.id != Self.root && FolderPlace.isName(node.name) {
                contents.nodes[node.id] = Node(
                    parent: node.parent, name: node.name, identity: [], lookups: node.lookups)
            }
            for node in state.nodes { identify(node.id, &contents) }
            for handle in state.handles {
                guard let opened = try? open(handle.node, handle.flags, isFolder: handle.isFolder, &contents) else {
                    continue
                }
                keep(Handle(node: handle.node, flags: handle.flags, opened: opened), handle.id, &contents)
            }
        }
    }

    /// Notes which file a restored number stands for.
    private func identify(_ number: UInt64, _ contents: inout Contents) {
        var way: [UInt64] = []
        var at = number
        while at != Self.root, let node = contents.nodes[at], node.identity.isEmpty, way.count < Self.deepest {
            way.append(at)
            at = node.parent
        }
        for next in way.reversed() {
            guard let node = contents.nodes[next], let folder = try? place(node.parent, &contents),
                let child = try? folder.child(node.name), let status = try? child.status()
            else { return }
            contents.nodes[next]?.identity = status.identity
            contents.numbers[status.identity] = next
            keep(child, next, &contents)
        }
    }
}

extension FUSEReply {
    /// A file's number and attributes.
    mutating func entry(_ number: UInt64, _ status: FileStatus) {
        long(number)
        long(0)
        long(SharedFolder.validity)
        long(SharedFolder.validity)
        zeroes(8)
        attributes(status)
    }

    /// A file's attributes.
    mutating func attributes(_ status: FileStatus) {
        for value in [status.inode, status.size, status.blocks] { long(value) }
        for time in status.times { long(time.seconds) }
        for time in status.times { word(time.nanoseconds) }
        for value in [status.mode, status.links, status.user, status.group, status.special] { word(value) }
        word(UInt32(clamping: status.blockSize))
        word(0)
    }
}
