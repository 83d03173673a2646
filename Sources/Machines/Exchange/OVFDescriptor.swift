// OVF descriptors: what an OVA package says of its machine, and what Roost says in one.
//
// DMTF DSP0243 (Open Virtualization Format 1.1), chapters 7 to 9. Of a descriptor that is read, only this counts:
//
//   References/File            id, href
//   DiskSection/Disk           diskId, fileRef
//   VirtualHardwareSection/Item   ResourceType 3 processors, 4 memory, 10 network card, 17 disk
internal import Machine

/// What a package says of its machine.
struct OVFDescriptor: Sendable, Equatable {
    static let largest: UInt64 = 4 << 20

    var name = ""
    var processors = 1
    var memory: UInt64 = 512 << 20
    /// File names of the disks' images, in their order.
    var disks: [String] = []
    var networkCards = 0

    init(name: String, processors: Int, memory: UInt64, disks: [String], networkCards: Int) {
        self.name = name
        self.processors = processors
        self.memory = memory
        self.disks = disks
        self.networkCards = networkCards
    }

    /// Reads a descriptor.
    init(_ text: String) throws(MachinesError) {
        var files: [String: String] = [:]
        var images: [String: String] = [:]
        var item: [String: String]?
        var path: [String] = []
        var scanner = XMLScanner(text)
        while let event = scanner.next() {
            switch event {
            case .open(let element, let attributes):
                path.append(element)
                switch element {
                case "Envelope", "VirtualSystem": if let id = attributes["id"] { name = id }
                case "File": if let id = attributes["id"], let href = attributes["href"] { files[id] = href }
                case "Disk":
                    if let id = attributes["diskId"], let reference = attributes["fileRef"] { images[id] = reference }
                case "Item": item = [:]
                default: break
                }
            case .text(let text): if let element = path.last, item != nil { item?[element, default: ""] += text }
            case .close:
                if path.popLast() == "Item", let done = item {
                    item = nil
                    take(done, files, images)
                }
            }
            // Deeper than any descriptor, more than any machine has.
            guard path.count <= 64, disks.count <= 64, files.count + images.count <= 1024 else {
                throw MachinesError(.damaged, "the OVF descriptor makes no sense")
            }
        }
        guard scanner.isComplete, path.isEmpty else {
            throw MachinesError(.damaged, "the OVF descriptor is not XML, or was cut short")
        }
    }

    private mutating func take(_ item: [String: String], _ files: [String: String], _ images: [String: String]) {
        let quantity = item["VirtualQuantity"].flatMap { UInt64($0.filter { !$0.isWhitespace }) }
        switch item["ResourceType"]?.filter({ !$0.isWhitespace }) {
        case "3": if let quantity { processors = Int(min(max(quantity, 1), 64)) }
        case "4":
            let unit = item["AllocationUnits"]?.lowercased().filter { !$0.isWhitespace } ?? "byte*2^20"
            let shift: UInt64 = unit.contains("2^30") || unit.hasPrefix("giga") ? 30 : unit.contains("2^10") ? 10 : 20
            if let quantity, quantity < 1 << 20 { memory = quantity << shift }
        case "10": networkCards = min(networkCards + 1, 8)
        case "17":
            // ovf:/disk/ID or ovf:/file/ID.
            let words = (item["HostResource"] ?? "").filter { !$0.isWhitespace }.split(separator: "/").map(String.init)
            guard let id = words.last else { return }
            if let file = files[words.contains("file") ? id : images[id] ?? ""] { disks.append(file) }
        default: break
        }
    }

    /// The descriptor of a machine whose disks have these sizes.
    func text(sizes: [UInt64], further: [String]) -> String {
        var references = ""
        var list = ""
        var items = ""
        for (index, file) in disks.enumerated() {
            references += "    <File ovf:id=\"file\(index)\" ovf:href=\"\(XMLScanner.escaped(file))\"/>\n"
            list += """
                    <Disk ovf:diskId="disk\(index)" ovf:fileRef="file\(index)" ovf:capacity="\(sizes[index])" \
                ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>

                """
            items += Self.item(
                10 + index, "disk \(index)", 17,
                ["AddressOnParent": "\(index)", "HostResource": "ovf:/disk/disk\(index)", "Parent": "3"])
        }
        for (index, file) in further.enumerated() {
            references += "    <File ovf:id=\"further\(index)\" ovf:href=\"\(XMLScanner.escaped(file))\"/>\n"
        }
        for index in 0..<networkCards {
            items += Self.item(100 + index, "network card \(index)", 10, ["Connection": "network"])
        }
        return """
            <?xml version="1.0" encoding="UTF-8"?>
            <Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" \
            xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
              <References>
            \(references)  </References>
              <DiskSection>
                <Info>Disks</Info>
            \(list)  </DiskSection>
              <NetworkSection>
                <Info>Networks</Info>
                <Network ovf:name="network"><Description>A network</Description></Network>
              </NetworkSection>
              <VirtualSystem ovf:id="\(XMLScanner.escaped(name))">
                <Info>A virtual machine</Info>
                <Name>\(XMLScanner.escaped(name))</Name>
                <OperatingSystemSection ovf:id="101"><Info>Linux, 64 bits</Info></OperatingSystemSection>
                <VirtualHardwareSection>
                  <Info>Hardware</Info>
            \(Self.item(1, "\(processors) processors", 3, ["VirtualQuantity": "\(processors)"]))\
            \(Self.item(2, "memory", 4, ["AllocationUnits": "byte * 2^20", "VirtualQuantity": "\(memory >> 20)"]))\
            \(Self.item(3, "disk controller", 6, ["ResourceSubType": "lsilogic"]))\
            \(items)    </VirtualHardwareSection>
              </VirtualSystem>
            </Envelope>

            """
    }

    /// An item; its elements stand in alphabetical order (DSP0243, 8.1).
    private static func item(_ id: Int, _ name: String, _ type: Int, _ elements: [String: String]) -> String {
        var all = elements
        all["ElementName"] = name
        all["InstanceID"] = "\(id)"
        all["ResourceType"] = "\(type)"
        let text = all.sorted { $0.key < $1.key }.map { "<rasd:\($0.key)>\($0.value)</rasd:\($0.key)>" }
        return "      <Item>" + text.joined() + "</Item>\n"
    }
}
