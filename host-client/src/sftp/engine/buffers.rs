//! Buffers for large frames, which are reused: to allocate and free this much memory costs more than
//! its use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::protocol::sftp::{FrameHead, MAX_FRAME_BYTES};

/// Most buffers kept for later: with them, 8 MiB.
const MAX_FREE: usize = 32;

/// Free buffers.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `length` bytes, at most a frame with its head.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let memory = self.lock().pop().unwrap_or_else(|| {
            let frame = usize::try_from(MAX_FRAME_BYTES).unwrap_or(usize::MAX);
            vec![0; FrameHead::BYTES + frame].into_boxed_slice()
        });
        Buffer {
            length: length.min(memory.len()),
            memory,
            home: self.clone(),
        }
    }
}

/// One buffer. It goes back when it, or the last [`Bytes`] made of it, is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Box<[u8]>,
    length: usize,
    home: Buffers,
}

impl Buffer {
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let mut free = self.home.lock();
        if free.len() < MAX_FREE {
            free.push(memory);
        }
    }
}
