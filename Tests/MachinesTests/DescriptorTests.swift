// Descriptors that mean harm: no trap, no endless loop, no memory.
import Machines
import Testing

@Suite("XML of packages") struct XMLScannerTests {
    private func events(_ text: String) -> (events: [XMLScanner.Event], isComplete: Bool) {
        var scanner = XMLScanner(text)
        var events: [XMLScanner.Event] = []
        while let event = scanner.next() {
            events.append(event)
            if events.count > 100_000 { break }
        }
        return (events, scanner.isComplete)
    }

    @Test("Elements, attributes, empty elements, comments and the five entities")
    func plain() {
        let (events, isComplete) = events("<?xml version='1.0'?><a x:b = 'c&amp;d'><!-- < --><y:e f=\"1\"/>&lt;t</a>")
        #expect(isComplete)
        #expect(
            events == [
                .open("a", ["b": "c&d"]), .open("e", ["f": "1"]), .close, .text("<t"), .close,
            ])
    }

    @Test("Declarations of entities end the reading")
    func entities() {
        #expect(!events("<!DOCTYPE a [<!ENTITY b \"bb\">]><a>&b;</a>").isComplete)
        #expect(events("<a>&b;</a>").events == [.open("a", [:]), .text("&b;"), .close])
    }

    @Test("Every text comes to an end, however it is cut or altered")
    func damaged() {
        let text = "<?xml version=\"1.0\"?><a b=\"c\"><d e='f'/>text<!-- no --><g>&gt;</g></a>"
        for count in 0...text.count { _ = events(String(text.prefix(count))) }
        var state: UInt64 = 1
        for _ in 0..<20_000 {
            var bytes = Array(text.utf8)
            for _ in 0..<3 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                bytes[Int(state >> 33) % bytes.count] = UInt8(truncatingIfNeeded: state >> 20)
            }
            #expect(events(String(decoding: bytes, as: UTF8.self)).events.count < 1000)
        }
    }
}
