//! How a file is opened.

use crate::protocol::sftp::{Attributes, open_flags};

/// How [`Sftp::open`](crate::Sftp::open) opens a file, after [`std::fs::OpenOptions`]. At first nothing
/// is set.
///
/// ```no_run
/// use vsock_agent_client::{ClientError, OpenOptions, Sftp};
///
/// async fn append(sftp: &Sftp, line: &'static str) -> Result<(), ClientError> {
///     let options = OpenOptions::new().append(true).create(true).mode(0o600);
///     let file = sftp.open("/var/log/notes", options).await?;
///     // The server ignores the offset.
///     file.write_at(0, line).await?;
///     file.close().await
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Without the flags that others imply.
    flags: u32,
    pub(super) attributes: Attributes,
}

impl OpenOptions {
    /// Nothing is set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    #[must_use]
    pub const fn read(self, read: bool) -> Self {
        self.set(open_flags::READ, read)
    }

    /// For writing.
    #[must_use]
    pub const fn write(self, write: bool) -> Self {
        self.set(open_flags::WRITE, write)
    }

    /// For writing at the end of the file, whatever the offset of a write.
    #[must_use]
    pub const fn append(self, append: bool) -> Self {
        self.set(open_flags::APPEND, append)
    }

    /// Empties the file.
    #[must_use]
    pub const fn truncate(self, truncate: bool) -> Self {
        self.set(open_flags::TRUNCATE, truncate)
    }

    /// Creates the file if it does not exist.
    #[must_use]
    pub const fn create(self, create: bool) -> Self {
        self.set(open_flags::CREATE, create)
    }

    /// Creates the file, and fails if it exists.
    #[must_use]
    pub const fn create_new(self, create_new: bool) -> Self {
        self.set(open_flags::EXCLUSIVE, create_new)
    }

    /// The permissions of a file that is created; the server may apply its umask.
    #[must_use]
    pub const fn mode(mut self, permissions: u32) -> Self {
        self.attributes.permissions = Some(permissions);
        self
    }

    /// The flags of the request. `APPEND` implies `WRITE`, and `EXCLUSIVE` implies `CREATE`.
    pub(super) const fn flags(&self) -> u32 {
        let mut flags = self.flags;
        if flags & open_flags::APPEND != 0 {
            flags |= open_flags::WRITE;
        }
        if flags & open_flags::EXCLUSIVE != 0 {
            flags |= open_flags::CREATE;
        }
        flags
    }

    const fn set(mut self, flags: u32, set: bool) -> Self {
        if set {
            self.flags |= flags;
        } else {
            self.flags &= !flags;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_is_unset_leaves_the_others() {
        let options = OpenOptions::new().write(true).create(true);
        let flags = open_flags::WRITE | open_flags::CREATE;
        assert_eq!(
            options.clone().append(false).create_new(false).flags(),
            flags
        );
        let all = flags | open_flags::APPEND | open_flags::EXCLUSIVE;
        assert_eq!(
            OpenOptions::new().append(true).create_new(true).flags(),
            all
        );
        assert_eq!(
            options.append(true).write(false).create_new(true).flags(),
            all
        );
    }
}
