//! The image of a CD-ROM: ISO 9660 (ECMA-119) with modes (Rock Ridge, IEEE P1282), files right in its
//! root and no more than what Linux reads.

use std::path::Path;

/// Bytes of a sector.
const SECTOR: usize = 2048;

/// Sectors of the two descriptors and the root.
const PRIMARY: usize = 16;
const TERMINATOR: usize = 17;
const ROOT: usize = 18;

/// Gives an image with this label and these files.
pub(crate) fn disc(label: &str, files: &[(&str, &String)]) -> Vec<u8> {
    let mut image = vec![0; (ROOT + 1) * SECTOR];
    let mut root = [
        record(b"\0", ROOT, SECTOR, 2, SHARED),
        record(b"\x01", ROOT, SECTOR, 2, &[]),
    ]
    .concat();
    for (name, content) in files {
        let sector = image.len() / SECTOR;
        let name = format!("{};1", name.to_uppercase());
        root.extend(record(
            name.as_bytes(),
            sector,
            content.len(),
            0,
            &owners_only(),
        ));
        image.extend(content.as_bytes());
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    put(&mut image, ROOT, 0, &root);
    let sectors = image.len() / SECTOR;
    put(&mut image, PRIMARY, 0, b"\x01CD001\x01");
    put(&mut image, PRIMARY, 40, format!("{label:32}").as_bytes());
    put(&mut image, PRIMARY, 80, &both(sectors));
    // One volume, number one, of sectors of this size; and the version of the format.
    for (at, number) in [(120, 1), (124, 1), (128, SECTOR)] {
        put(&mut image, PRIMARY, at, &both_short(number));
    }
    let of_root = record(b"\0", ROOT, SECTOR, 2, &[]);
    put(&mut image, PRIMARY, 156, &of_root);
    put(&mut image, PRIMARY, 881, &[1]);
    put(&mut image, TERMINATOR, 0, b"\xffCD001\x01");
    image
}

fn put(image: &mut [u8], sector: usize, at: usize, bytes: &[u8]) {
    let start = sector * SECTOR + at;
    image[start..start + bytes.len()].copy_from_slice(bytes);
}

/// The indicator that the sharing protocol is in use, first in the root (IEEE P1281, SP).
const SHARED: &[u8] = b"SP\x07\x01\xbe\xef\0";

/// A regular file that root alone may read: its mode, links, user and group (IEEE P1282, PX), as the
/// discs of Incus have it.
fn owners_only() -> Vec<u8> {
    let numbers = [0o100_400, 1, 0, 0].into_iter().flat_map(both);
    b"PX\x24\x01".iter().copied().chain(numbers).collect()
}

/// An entry of a directory (9.1), with its system use.
fn record(name: &[u8], sector: usize, size: usize, flags: u8, system: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(sector));
    record.extend(both(size));
    // The first of January 2000.
    record.extend([100, 1, 1, 0, 0, 0, 0, flags, 0, 0]);
    record.extend(both_short(1));
    record.push(u8::try_from(name.len()).unwrap());
    record.extend(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend(system);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = u8::try_from(record.len()).unwrap();
    record
}

/// A number in both orders of bytes (7.3.3).
fn both(number: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap();
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// A small number in both orders of bytes (7.2.3).
fn both_short(number: usize) -> Vec<u8> {
    let number = u16::try_from(number).unwrap();
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// QEMU's arguments for a drive with this disc in it, by the name that Incus gives it.
pub(crate) fn drive(image: &Path) -> Vec<String> {
    let image = image.display();
    let disc = format!("file={image},if=none,id=incus_agent,media=cdrom,format=raw");
    let drive = "scsi-cd,drive=incus_agent";
    let words = [
        "-drive",
        &disc,
        "-device",
        "virtio-scsi-pci",
        "-device",
        drive,
    ];
    words.map(str::to_owned).to_vec()
}
