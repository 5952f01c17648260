//! Small files out of the guest, several in one request.

use std::{ffi::OsString, os::unix::ffi::OsStrExt, sync::Arc};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    super::{
        CopyError,
        attributes::Kind,
        local::{
            LocalDirectory,
            target::{self, Finish, Look, Target},
        },
        run::{Run, SMALL_BYTES},
    },
    Directory, Work, put_one,
};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Attributes,
        extension::{FetchedFile, MAX_FETCHED_BYTES},
    },
    sftp::RemotePath,
};

/// Most files in one request.
const MAX_FILES: usize = 64;

/// Files of one directory that are small by their attributes.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The directory in the guest.
    source: Option<RemotePath>,
    files: Vec<(OsString, Attributes)>,
    /// Bytes that are asked for.
    bytes: u32,
    /// Bounds how many are in memory at once.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// A file that has come whole.
struct Whole {
    name: OsString,
    source: RemotePath,
    attributes: Attributes,
    data: Bytes,
}

impl Files {
    /// Whether a file can go together with others.
    pub(super) fn is_fit(kind: Kind, attributes: &Attributes) -> bool {
        // Those of the size 0 may be made up by the guest's kernel.
        let is_small = |size| (1..=SMALL_BYTES).contains(&size);
        kind == Kind::File && attributes.size.is_some_and(is_small)
    }

    /// Whether another one is too much.
    pub(super) fn is_full_for(&self, attributes: &Attributes) -> bool {
        self.files.len() >= MAX_FILES
            || self.bytes.saturating_add(request_length(attributes)) > MAX_FETCHED_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn add(&mut self, source: &RemotePath, name: OsString, attributes: Attributes) {
        self.source.get_or_insert_with(|| source.clone());
        self.bytes = self.bytes.saturating_add(request_length(&attributes));
        self.files.push((name, attributes));
    }
}

/// One byte more than there should be tells whether there is more.
fn request_length(attributes: &Attributes) -> u32 {
    let size = attributes.size.unwrap_or(0).saturating_add(1);
    u32::try_from(size).unwrap_or(u32::MAX)
}

pub(super) async fn pull(
    run: &Run<'_>,
    directory: &Arc<Directory>,
    local: &Arc<LocalDirectory>,
    files: Files,
) -> Result<(), CopyError> {
    let Some(source) = files.source else {
        return Ok(());
    };
    let name = |name: &OsString| Bytes::copy_from_slice(name.as_bytes());
    let request = files.files.iter();
    let request = request.map(|(file, attributes)| (name(file), request_length(attributes)));
    let fetched = match run.sftp.fetch(&source, request.collect()).await {
        Ok(fetched) => fetched.into_iter().map(Some).collect(),
        // Each file gets the error by itself.
        Err(ClientError::File { .. }) => files.files.iter().map(|_| None).collect::<Vec<_>>(),
        Err(error) => return Err(error.into()),
    };
    let (mut whole, mut rest, mut reservations) = (Vec::new(), Vec::new(), Vec::new());
    for ((name, listed), fetched) in files.files.into_iter().zip(fetched) {
        let source = source.join(name.as_bytes());
        match fetched {
            Some(Ok(FetchedFile { attributes, data })) if is_all(&attributes, &data) => {
                run.started(source.as_bytes(), attributes.size, 0);
                reservations.push(run.reserve(length(&data))?);
                let attributes = run.attributes_to_set(&attributes);
                whole.push(Whole {
                    name,
                    source,
                    attributes,
                    data,
                });
            }
            Some(Err(error)) => run.failed(source.as_bytes(), error.into())?,
            // It has another size than the listing said.
            _ => rest.push((name, source, listed)),
        }
    }
    let (into, is_new, finish) = (Arc::clone(local), directory.is_new(), Finish::of(run));
    let look = Look {
        is_named: false,
        no_dereference: run.options.no_dereference,
    };
    let write = move || {
        let write = |file: Whole| {
            let target = if is_new {
                Ok(Target::new(&into, &file.name))
            } else {
                Target::look(&into, &file.name, look)
            };
            let written = target
                .and_then(|target| target::save(&target, &file.data, &file.attributes, finish));
            (file, written)
        };
        whole.into_iter().map(write).collect::<Vec<_>>()
    };
    for ((file, written), mut reservation) in
        run.pool.run(write).await?.into_iter().zip(reservations)
    {
        let bytes = length(&file.data);
        match written {
            Ok(completed) => {
                run.completed(file.source.as_bytes(), completed);
                reservation.copied(bytes)?;
                run.finished(file.source.as_bytes(), bytes, |summary| &mut summary.files);
            }
            Err(error) => run.failed(file.source.as_bytes(), error)?,
        }
    }
    for (name, source, attributes) in rest {
        let work = Work {
            directory: Arc::clone(directory),
            local: Arc::clone(local),
            name,
            source,
            kind: Kind::File,
            attributes,
            is_named: false,
        };
        put_one(run, work).await?;
    }
    Ok(())
}

fn is_all(attributes: &Attributes, data: &Bytes) -> bool {
    attributes.size == Some(length(data))
}

fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
