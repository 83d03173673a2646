// The two halves of `roost copy`, each for a shell (with GNU's tar) on the host or in the guest: an archive of one file or
// folder is made, and unpacked into a folder beside its place that nobody else enters, whence it is moved.
//
//   pack      $1 the source
//   unpack    $1 the target, $2 the source, whose name it has if the target is a folder

/// Arguments of /bin/sh.
enum CopyScripts {
    /// Writes an archive of a file or folder under its own name; of what is in a folder, if it is told without a name.
    static func pack(_ source: String) -> [String] {
        [
            "-c",
            """
            folder=$(dirname "$1") name=$(basename "$1")
            case $name in . | .. | /) exec tar -c -f - -C "$1" . ;; esac
            if [ ! -L "$folder/$name" ]; then exec tar -c -f - -C "$folder" -- "$name"; fi
            if [ -d "$folder/$name" ]; then exec tar -c -f - -C "$folder" -- "$name/."; fi
            exec tar -c -h -f - -C "$folder" -- "$name"
            """, "sh", plain(source),
        ]
    }

    /// Unpacks what the host has packed, as it was there.
    static func unpackInGuest(_ source: String, at target: String) -> [String] {
        unpack(source, target, options: "", check: "")
    }

    /// Unpacks what a guest has sent, with no more than what was asked for, and no rights that this user hasn't given.
    static func unpackOnHost(_ source: String, at target: String) -> [String] {
        unpack(source, target, options: "--no-same-owner --no-same-permissions", check: check)
    }

    /// One thing under the name that it is to have, of files, folders and symbolic links. What can't be looked into may be
    /// anything.
    private static let check = """
        refuse() { echo "the guest sent $1" >&2; exit 1; }
        find "$new" -type d ! -perm -500 -exec chmod u+rx {} \\;
        all=$(find "$new" -mindepth 1 -maxdepth 1 -printf x) || exit
        if [ "$item" != "$new" ] && [ "$all" != x ]; then refuse "more or less than $name"; fi
        if [ -L "$item" ] || [ ! -e "$item" ]; then refuse "something other than $name"; fi
        odd=$(find "$new" ! -type f ! -type d ! -type l -printf x -quit) || exit
        if [ "$odd" ]; then refuse "what is no file, folder or symbolic link"; fi
        """

    /// A signal ends what the shell waits for, and the shell then takes its folder away; where nothing came, who packs has
    /// said why. A folder whose name a folder has is copied into that one; one that may not be written can't be moved.
    private static func unpack(_ source: String, _ target: String, options: String, check: String) -> [String] {
        [
            "-c",
            """
            name=$(basename "$2")
            case $name in . | .. | /) name=. ;; esac
            if [ -d "$1" ]; then folder=$1 place=$1/$name
            else folder=$(dirname "$1") place=$(dirname "$1")/$(basename "$1"); fi
            if [ ! -d "$folder" ]; then echo "there is no folder $folder" >&2; exit 1; fi
            scratch=$(mktemp -d "$folder/.roost-copy-XXXXXX") || exit
            trap 'trap "" HUP INT TERM; chmod -R u+rwx "$scratch" 2>/dev/null; rm -rf "$scratch"' EXIT
            trap : HUP INT TERM
            new=$scratch/new
            mkdir "$new" && tar -x -f - -C "$new" \(options) || exit
            item=$new
            if [ "$name" != . ]; then item=$new/$name; fi
            if [ "$name" != . ] && [ -z "$(ls -A "$new")" ]; then exit 1; fi
            \(check)
            if [ -d "$item" ] && { [ -d "$place" ] || [ ! -w "$item" ]; }; then
                cp -a --remove-destination -T -- "$item" "$place"
            else
                mv -f -T -- "$item" "$place"
            fi
            """, "sh", plain(target), plain(source),
        ]
    }

    /// A path that isn't taken for an option.
    private static func plain(_ path: String) -> String { path.hasPrefix("/") ? path : "./" + path }
}
