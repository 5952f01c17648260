//! A parsed request: what it does, which files and paths it uses, and its handles.

use bytes::Bytes;
use vsock_agent_protocol::sftp::{DataRequest, DecodeError, Request, open_flags};

use super::{
    SftpError,
    access::AccessSet,
    extension::Extension,
    handles::{BoundHandles, Handles, number},
};

/// The request in a frame.
#[derive(Debug)]
pub(super) enum ParsedRequest<'a> {
    /// READ and WRITE, which borrow from the frame.
    Data(DataRequest<'a>),
    Plain(Request),
    Extension(Extension),
    /// It is malformed or unknown, and is answered with this error.
    Invalid(SftpError),
}

/// Decodes a frame: its id and its request.
///
/// # Errors
///
/// [`DecodeError`] when the frame has no id that could be answered.
pub(super) fn decode(frame: &[u8]) -> Result<(u32, ParsedRequest<'_>), DecodeError> {
    if let Some((id, data)) = DataRequest::decode(frame) {
        return Ok((id, ParsedRequest::Data(data)));
    }
    Ok(match Request::decode(Bytes::copy_from_slice(frame)) {
        Ok((id, Request::Extended { name, data })) => match Extension::decode(&name, data) {
            Ok(extension) => (id, ParsedRequest::Extension(extension)),
            Err(error) => (id, ParsedRequest::Invalid(error)),
        },
        Ok((id, request)) => (id, ParsedRequest::Plain(request)),
        Err(DecodeError::UnknownType { id: Some(id), .. }) => {
            (id, ParsedRequest::Invalid(SftpError::Unsupported))
        }
        Err(DecodeError::Malformed { id: Some(id), .. }) => {
            let error = SftpError::BadMessage("the request is malformed");
            (id, ParsedRequest::Invalid(error))
        }
        Err(error) => return Err(error),
    })
}

impl ParsedRequest<'_> {
    /// What it uses, all its handles among it.
    pub(super) fn access(&self, handles: &Handles) -> AccessSet {
        match self {
            Self::Invalid(_) => AccessSet::default(),
            Self::Data(request) => data_access(request, handles),
            Self::Extension(extension) => extension.access(handles),
            Self::Plain(request) => match request {
                // READ, WRITE and EXTENDED are the other two kinds.
                Request::Init { .. }
                | Request::Extended { .. }
                | Request::Read { .. }
                | Request::Write { .. } => AccessSet::default(),
                Request::Fstat { handle } => {
                    AccessSet::default().reads(number(handle), 0, u64::MAX)
                }
                Request::Fsetstat { handle, .. }
                | Request::Close { handle }
                | Request::Readdir { handle } => {
                    handles.add_write(AccessSet::default(), handle, 0, u64::MAX)
                }
                Request::Open { path, flags, .. } => {
                    match flags & (open_flags::CREATE | open_flags::TRUNCATE) {
                        0 => AccessSet::reads_path(path),
                        _ => AccessSet::changes(path, None),
                    }
                }
                Request::Opendir { path }
                | Request::Lstat { path }
                | Request::Stat { path }
                | Request::Realpath { path }
                | Request::Readlink { path } => AccessSet::reads_path(path),
                Request::Setstat { path, .. }
                | Request::Remove { path }
                | Request::Mkdir { path, .. }
                | Request::Rmdir { path }
                | Request::Symlink { link: path, .. } => AccessSet::changes(path, None),
                Request::Rename { from, to } => AccessSet::changes(from, Some(to)),
            },
        }
    }

    /// Whether its reply gives a handle.
    pub(super) fn opens(&self) -> bool {
        match self {
            Self::Plain(request) => {
                matches!(request, Request::Open { .. } | Request::Opendir { .. })
            }
            Self::Extension(extension) => extension.opens(),
            _ => false,
        }
    }

    /// Looks up the handles of its access set. CLOSE removes its handle here, and a request that opens
    /// something reserves one, which must be used or released.
    ///
    /// # Errors
    ///
    /// [`SftpError::UnknownHandle`], [`SftpError::ClosedHandle`], [`SftpError::TooManyHandles`].
    pub(super) fn bind(&self, handles: &mut Handles) -> Result<BoundHandles, SftpError> {
        if self.opens() {
            handles.reserve()?;
        }
        let access = self.access(handles);
        match self {
            Self::Plain(Request::Close { handle }) => {
                let open = handles.remove(handle).ok_or(SftpError::ClosedHandle);
                open.map(BoundHandles::One)
            }
            Self::Extension(Extension::Fsync { .. }) => {
                let bound = handles.bind(&access);
                bound.map_err(|_| SftpError::ClosedHandle)
            }
            _ => handles.bind(&access),
        }
    }
}

fn data_access(request: &DataRequest<'_>, handles: &Handles) -> AccessSet {
    match *request {
        DataRequest::Read {
            handle,
            offset,
            length,
        } => AccessSet::default().reads(number(handle), offset, length.into()),
        DataRequest::Write {
            handle,
            offset,
            data,
        } => {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            handles.add_write(AccessSet::default(), handle, offset, length)
        }
    }
}
