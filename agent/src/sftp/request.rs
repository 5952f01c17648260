//! A frame as something to do: what it asks for, what it uses, and the open files it means.

use std::sync::Arc;

use bytes::Bytes;
use vsock_agent_protocol::sftp::{DataRequest, DecodeError, Request, open_flags};

use super::{
    SftpError,
    extension::Extension,
    handles::{Handles, Open, number},
    input::Begun,
    order::Claim,
};

/// What one frame asks for.
#[derive(Debug)]
pub(super) enum Wanted<'a> {
    /// READ and WRITE, in place.
    Data(DataRequest<'a>),
    Plain(Request),
    Extension(Extension),
    /// It makes no sense, and its sender can be told.
    Nonsense(SftpError),
}

/// What a request's handles stand for.
#[derive(Debug)]
pub(super) enum Bound {
    /// It has none.
    Nothing,
    /// A place is kept for what it opens.
    Place,
    One(Arc<Open>),
    Two(Arc<Open>, Arc<Open>),
}

/// Reads a frame: the id, and what is wanted.
///
/// # Errors
///
/// [`DecodeError`] when nobody could be told what it was about.
pub(super) fn decode(frame: &[u8]) -> Result<(u32, Wanted<'_>), DecodeError> {
    if let Some((id, data)) = DataRequest::decode(frame) {
        return Ok((id, Wanted::Data(data)));
    }
    Ok(match Request::decode(Bytes::copy_from_slice(frame)) {
        Ok((id, Request::Extended { name, data })) => match Extension::decode(&name, data) {
            Ok(extension) => (id, Wanted::Extension(extension)),
            Err(error) => (id, Wanted::Nonsense(error)),
        },
        Ok((id, request)) => (id, Wanted::Plain(request)),
        Err(DecodeError::UnknownType { id: Some(id), .. }) => {
            (id, Wanted::Nonsense(SftpError::Unsupported))
        }
        Err(DecodeError::Malformed { id: Some(id), .. }) => {
            let error = SftpError::BadMessage("the request is malformed");
            (id, Wanted::Nonsense(error))
        }
        Err(error) => return Err(error),
    })
}

impl Wanted<'_> {
    /// What it uses. Handles that stand for nothing use nothing.
    pub(super) fn claim(&self, handles: &Handles) -> Claim {
        let whole = |handle: &Bytes| match number(handle) {
            Some(number) => Claim::default().reads(number, 0, u64::MAX),
            None => Claim::default(),
        };
        match self {
            Self::Nonsense(_) => Claim::default(),
            Self::Data(request) => data_claim(request, handles),
            Self::Extension(extension) => extension.claim(handles),
            Self::Plain(request) => match request {
                // READ, WRITE and EXTENDED are the other two kinds.
                Request::Init { .. }
                | Request::Extended { .. }
                | Request::Read { .. }
                | Request::Write { .. } => Claim::default(),
                Request::Fstat { handle } => whole(handle),
                Request::Fsetstat { handle, .. }
                | Request::Close { handle }
                | Request::Readdir { handle } => {
                    writes(Claim::default(), handle, 0, u64::MAX, handles)
                }
                Request::Open { path, flags, .. } => {
                    match flags & (open_flags::CREATE | open_flags::TRUNCATE) {
                        0 => Claim::looks_at(path),
                        _ => Claim::changes(path, None),
                    }
                }
                Request::Opendir { path }
                | Request::Lstat { path }
                | Request::Stat { path }
                | Request::Realpath { path }
                | Request::Readlink { path } => Claim::looks_at(path),
                Request::Setstat { path, .. }
                | Request::Remove { path }
                | Request::Mkdir { path, .. }
                | Request::Rmdir { path }
                | Request::Symlink { link: path, .. } => Claim::changes(path, None),
                Request::Rename { from, to } => Claim::changes(from, Some(to)),
            },
        }
    }

    /// Whether it opens something.
    pub(super) fn opens(&self) -> bool {
        match self {
            Self::Plain(request) => {
                matches!(request, Request::Open { .. } | Request::Opendir { .. })
            }
            Self::Extension(extension) => extension.opens(),
            _ => false,
        }
    }

    /// Looks its handles up. CLOSE takes its own out of the table here, and what opens something
    /// keeps a place, which must be used or given up.
    ///
    /// # Errors
    ///
    /// When a handle is not known, or too many are.
    pub(super) fn bind(&self, handles: &mut Handles) -> Result<Bound, SftpError> {
        match self {
            Self::Data(DataRequest::Read { handle, .. } | DataRequest::Write { handle, .. }) => {
                handles.find(handle).map(Bound::One)
            }
            Self::Plain(request) => match request {
                Request::Fstat { handle }
                | Request::Fsetstat { handle, .. }
                | Request::Readdir { handle } => handles.find(handle).map(Bound::One),
                Request::Close { handle } => {
                    let open = handles.remove(handle).ok_or(SftpError::ClosedHandle);
                    open.map(Bound::One)
                }
                Request::Open { .. } | Request::Opendir { .. } => {
                    handles.keep_place().map(|()| Bound::Place)
                }
                _ => Ok(Bound::Nothing),
            },
            Self::Extension(extension) => extension.bind(handles),
            Self::Nonsense(_) => Ok(Bound::Nothing),
        }
    }
}

impl Begun {
    /// What it uses.
    pub(super) fn claim(&self, handles: &Handles) -> Claim {
        let (handle, length) = (&self.handle, self.length.into());
        writes(Claim::default(), handle, self.offset, length, handles)
    }
}

fn data_claim(request: &DataRequest<'_>, handles: &Handles) -> Claim {
    match *request {
        DataRequest::Read {
            handle,
            offset,
            length,
        } => match number(handle) {
            Some(number) => Claim::default().reads(number, offset, length.into()),
            None => Claim::default(),
        },
        DataRequest::Write {
            handle,
            offset,
            data,
        } => {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            writes(Claim::default(), handle, offset, length, handles)
        }
    }
}

/// Adds a change of an open file. One that is appended to changes as a whole: where the write goes
/// depends on those before it.
pub(super) fn writes(
    claim: Claim,
    handle: &[u8],
    offset: u64,
    length: u64,
    handles: &Handles,
) -> Claim {
    let (Some(number), Ok(open)) = (number(handle), handles.find(handle)) else {
        return claim;
    };
    let path = Some(open.path.clone());
    if open.appends() {
        claim.writes(number, 0, u64::MAX, path)
    } else {
        claim.writes(number, offset, length, path)
    }
}
