// Finding what Linux says when it can't go on.
import Machines
import Testing

@Suite("Panics on the console") struct LineScannerTests {
    @Test("A marker is found wherever its line is cut, once, with the rest of the line")
    func marker() {
        let text = "boot\r\n[ 1.0] Kernel panic - not syncing: VFS: no root\r\nmore\n"
        for cut in 0...text.utf8.count {
            var scanner = LineScanner(marker: "Kernel panic - not syncing: ")
            let bytes = Array(text.utf8)
            #expect(scanner.scan(Array(bytes[..<cut])) + scanner.scan(Array(bytes[cut...])) == ["VFS: no root"])
        }
    }

    @Test("Endless lines take no memory and hide nothing after them")
    func long() {
        var scanner = LineScanner(marker: "panic: ")
        for _ in 0..<1000 { #expect(scanner.scan([UInt8](repeating: 65, count: 4096)).isEmpty) }
        #expect(scanner.scan(Array("\npanic: x\n".utf8)) == ["x"])
    }
}
