//! File attributes (draft-02, section 5).

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    FileType,
    codec::{Field, Reader, Short},
};

const FLAG_SIZE: u32 = 0x0000_0001;
const FLAG_OWNER: u32 = 0x0000_0002;
const FLAG_PERMISSIONS: u32 = 0x0000_0004;
const FLAG_TIMES: u32 = 0x0000_0008;
const FLAG_EXTENDED: u32 = 0x8000_0000;

/// User and group of a file, by number. The wire has no way to give only one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Times of a file, in seconds since 1970, to 2106. The wire has no way to give only one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// Of the last access.
    pub accessed: u32,
    /// Of the last modification.
    pub modified: u32,
}

/// Attributes of a file. A field that is `None` is unknown, or not to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Length in bytes.
    pub size: Option<u64>,
    /// Where it is set, [`UNCHANGED`](crate::id::UNCHANGED) leaves either id as it is: OpenSSH's server
    /// passes it to `chown(2)`, as ours does.
    pub owner: Option<Owner>,
    /// `st_mode`: type bits and permissions.
    pub permissions: Option<u32>,
    /// Access and modification time.
    pub times: Option<Times>,
    /// Name and value of vendor-specific attributes.
    pub extended: Vec<(Bytes, Bytes)>,
}

impl Attributes {
    /// Type of the file; `None` if it is not given.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::of(self.permissions?)
    }
}

impl Field for Attributes {
    fn take(reader: &mut Reader) -> Result<Self, Short> {
        let flags = reader.u32()?;
        let mut attributes = Self::default();
        if flags & FLAG_SIZE != 0 {
            attributes.size = Some(reader.u64()?);
        }
        if flags & FLAG_OWNER != 0 {
            attributes.owner = Some(Owner {
                uid: reader.u32()?,
                gid: reader.u32()?,
            });
        }
        if flags & FLAG_PERMISSIONS != 0 {
            attributes.permissions = Some(reader.u32()?);
        }
        if flags & FLAG_TIMES != 0 {
            attributes.times = Some(Times {
                accessed: reader.u32()?,
                modified: reader.u32()?,
            });
        }
        if flags & FLAG_EXTENDED != 0 {
            // No capacity is reserved: the count comes from the peer, the frame is the bound.
            for _ in 0..reader.u32()? {
                attributes.extended.push(Field::take(reader)?);
            }
        }
        Ok(attributes)
    }

    fn put(&self, out: &mut BytesMut) {
        let mut flags = 0;
        let has = [
            (FLAG_SIZE, self.size.is_some()),
            (FLAG_OWNER, self.owner.is_some()),
            (FLAG_PERMISSIONS, self.permissions.is_some()),
            (FLAG_TIMES, self.times.is_some()),
            (FLAG_EXTENDED, !self.extended.is_empty()),
        ];
        for (flag, set) in has {
            flags |= if set { flag } else { 0 };
        }
        out.put_u32(flags);
        if let Some(size) = self.size {
            out.put_u64(size);
        }
        if let Some(Owner { uid, gid }) = self.owner {
            out.put_u32(uid);
            out.put_u32(gid);
        }
        if let Some(permissions) = self.permissions {
            out.put_u32(permissions);
        }
        if let Some(Times { accessed, modified }) = self.times {
            out.put_u32(accessed);
            out.put_u32(modified);
        }
        if !self.extended.is_empty() {
            out.put_u32(u32::try_from(self.extended.len()).unwrap_or(u32::MAX));
            self.extended.iter().for_each(|pair| pair.put(out));
        }
    }
}
