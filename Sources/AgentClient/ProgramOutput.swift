// What a program in a guest has written, on its way to who reads it here.
internal import AgentProtocol
internal import Glibc
internal import HostOS

/// Passes bytes on as their reader takes them, without waiting for it.
struct ProgramOutput {
    /// Where they go.
    let descriptor: Int32
    private var bytes: [UInt8] = []
    private var written = 0
    /// Nobody reads them any more: what comes is dropped.
    private var isClosed = false

    init(_ descriptor: Int32) { self.descriptor = descriptor }

    var isEmpty: Bool { written == bytes.count }

    /// So much waits that the program has to wait too.
    var isFull: Bool { bytes.count - written > 4 * AgentMessage.piece }

    mutating func append(_ more: [UInt8]) {
        if isClosed { return }
        bytes.removeFirst(written)
        written = 0
        bytes += more
    }

    /// Writes what can be written now; true if its reader turned out to have gone. An error is that of a full disk, say.
    mutating func passOn() throws(HostError) -> Bool {
        if isEmpty { return false }
        do throws(HostError) {
            written += try ByteStream(writing: descriptor).writeAvailable(bytes[written...])
        } catch {
            guard error.errno == EPIPE else { throw error }
            close()
            return true
        }
        return false
    }

    /// Drops what waits and what comes.
    mutating func close() {
        isClosed = true
        bytes = []
        written = 0
    }
}
