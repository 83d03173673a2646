// Data that the host couldn't make durable.
import HostOS
import Storage
import Testing

@Suite struct DurabilityTests {
    @Test func `after a failure nothing is durable any more, whatever the host says`() throws {
        let durability = Durability()
        try durability.keep("disk") {}
        // No error of the host's, which might be waited out.
        let first = #expect(throws: StorageError.self) {
            try durability.keep("disk") { () throws(HostError) in
                throw HostError("fdatasync", errno: HostErrorNumber.ioError)
            }
        }
        #expect(first?.description.contains("Input/output error") == true)
        var calls = 0
        #expect(throws: StorageError.self) { try durability.keep("disk") { calls += 1 } }
        #expect(calls == 0)
    }
}
