//! Disks: `/proc/diskstats`.

/// Size of a sector in `/proc/diskstats`, in bytes, independent of the disk (`Documentation/block/stat.rst`).
const SECTOR_BYTES: u64 = 512;

/// A block device and its traffic since the boot (`Documentation/admin-guide/iostats.rst`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) is_partition: bool,
    pub(super) reads: u64,
    pub(super) reads_merged: u64,
    pub(super) read_bytes: u64,
    pub(super) read_milliseconds: u64,
    pub(super) writes: u64,
    pub(super) writes_merged: u64,
    pub(super) written_bytes: u64,
    pub(super) write_milliseconds: u64,
    /// Requests in progress.
    pub(super) in_flight: u64,
    pub(super) busy_milliseconds: u64,
    /// Time of all requests, those in parallel added up.
    pub(super) weighted_milliseconds: u64,
}

impl Disk {
    /// Whether it is no partition, RAM disk, loop device or floppy disk.
    pub(super) fn is_real(&self) -> bool {
        let is_virtual = ["loop", "ram", "zram", "fd"].iter().any(|kind| {
            let number = self.name.strip_prefix(kind);
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        !self.is_partition && !is_virtual
    }
}

/// Parses `/proc/diskstats`. Invalid lines are skipped.
pub(super) fn parse(text: &str) -> Vec<Disk> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Disk> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let name = fields.next()?.to_owned();
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Disk {
        name,
        is_partition: false,
        reads: next()?,
        reads_merged: next()?,
        read_bytes: next()?.saturating_mul(SECTOR_BYTES),
        read_milliseconds: next()?,
        writes: next()?,
        writes_merged: next()?,
        written_bytes: next()?.saturating_mul(SECTOR_BYTES),
        write_milliseconds: next()?,
        in_flight: next()?,
        busy_milliseconds: next()?,
        weighted_milliseconds: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_diskstats_are_converted_to_bytes() {
        let text = " 254       0 vda 10 1 20 3 40 5 60 7 8 9 11 12 13 14 15 16 17\n";
        let expected = Disk {
            name: "vda".to_owned(),
            is_partition: false,
            reads: 10,
            reads_merged: 1,
            read_bytes: 10_240,
            read_milliseconds: 3,
            writes: 40,
            writes_merged: 5,
            written_bytes: 30_720,
            write_milliseconds: 7,
            in_flight: 8,
            busy_milliseconds: 9,
            weighted_milliseconds: 11,
        };
        assert_eq!(parse(text), [expected]);
    }

    #[test]
    fn invalid_lines_of_diskstats_are_skipped() {
        let text = "\n254 0\n254 0 vda 1 2 3\n254 0 vdb 1 2 3 4 5 6 7 8 9 10 -11\nx\n";
        assert_eq!(parse(text), []);
    }

    #[test]
    fn ram_disks_and_loop_devices_are_no_real_disks() {
        let named = |name: &str| Disk {
            name: name.to_owned(),
            ..Disk::default()
        };
        for name in ["loop0", "ram15", "zram0", "fd0"] {
            assert!(!named(name).is_real(), "{name}");
        }
        for name in ["vda", "nvme0n1", "dm-0", "md127", "loopy", "cciss/c0d0"] {
            assert!(named(name).is_real(), "{name}");
        }
    }
}
