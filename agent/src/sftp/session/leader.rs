//! The leader: reads requests, runs them, and replies.

use std::{io, sync::Arc};

use super::{
    super::{
        SftpError,
        files::Outcome,
        input::{Frame, Input, Next, PartialWrite},
    },
    ReadBuffer, Response, SessionError, Shared, State, Waiting, decode,
};

/// Data up to this size, in bytes, are gathered with other replies; more is sent at once.
const SMALL_DATA_BYTES: usize = 4 * 1024;

/// Why a thread stops leading.
enum Stopped {
    /// The client closed the connection.
    Closed,
    /// Another thread took the input, or the session ended.
    InputTaken,
}

impl Shared {
    /// Reads and runs requests until another thread takes the input or the session ends.
    pub(super) fn lead(
        self: &Arc<Self>,
        input: Box<Input>,
        buffer: &mut ReadBuffer,
    ) -> Result<(), SessionError> {
        let stopped = self.read_and_run(input, buffer);
        if !matches!(stopped, Ok(Stopped::InputTaken)) {
            // Requests that arrived completely are still run.
            self.drain();
        }
        if matches!(stopped?, Stopped::Closed) {
            self.end(None);
        }
        Ok(())
    }

    fn read_and_run(
        self: &Arc<Self>,
        mut input: Box<Input>,
        buffer: &mut ReadBuffer,
    ) -> Result<Stopped, SessionError> {
        while let Some(next) = input.next(&self.sink)? {
            let kept = match next {
                Next::Frame(frame) => self.lead_frame(input, frame, buffer)?,
                Next::Write(partial) => self.lead_write(input, &partial, buffer)?,
            };
            match kept {
                Some(kept) => input = kept,
                None => return Ok(Stopped::InputTaken),
            }
        }
        Ok(Stopped::Closed)
    }

    /// Runs or defers a request. Gives the input back if it was not taken.
    fn lead_frame(
        &self,
        mut input: Box<Input>,
        frame: Frame,
        buffer: &mut ReadBuffer,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let (id, request) = decode(&frame)?;
        let mut state = self.lock();
        if state.ended {
            return Ok(None);
        }
        let access = request.access(&state.handles);
        if !state.scheduler.may_start(&access) {
            let frame = Box::from(&frame[..]);
            self.defer(state, &mut input, access, Waiting { frame })?;
            return Ok(Some(input));
        }
        let ticket = state.scheduler.start(access);
        let turn = self.offer_input(&mut state, input);
        let outcome = self.run(state, request, buffer);
        drop(frame);
        self.reclaim_input(turn, ticket, id, outcome, buffer)
    }

    /// Queues a WRITE whose data are still to be read. Gives the input back if it was not taken.
    fn lead_write(
        self: &Arc<Self>,
        mut input: Box<Input>,
        partial: &PartialWrite,
        buffer: &mut ReadBuffer,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let Some(mut write) = self.begin_write(partial) else {
            // It is run or refused like any other request.
            let frame = input.read_frame(&self.sink)?;
            return self.lead_frame(input, frame, buffer);
        };
        if let Err(error) = input.read_data(partial, write.data_mut(), &self.sink) {
            self.abandon(write);
            return Err(error);
        }
        if !self.queue_write(write) {
            let turn = self.offer_input(&mut self.lock(), input);
            self.write_queued()?;
            let mut state = self.lock();
            let mine = state.turn == turn;
            return Ok(state.input.take_if(|_| mine));
        }
        Ok(Some(input))
    }

    /// Leaves the input where the watcher may take it. Returns the turn by which the thread knows
    /// whether the input there is still its own.
    fn offer_input(&self, state: &mut State, input: Box<Input>) -> u64 {
        state.turn += 1;
        state.input = Some(input);
        if state.followers.wake_watcher() {
            self.watch.notify_one();
        }
        state.turn
    }

    /// Replies to a request. Gives the input back if it was not taken.
    fn reclaim_input(
        &self,
        turn: u64,
        ticket: u64,
        id: u32,
        outcome: Result<Outcome, (SftpError, bool)>,
        buffer: &mut ReadBuffer,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let (mut state, response) = self.store_outcome(outcome);
        let mine = state.turn == turn;
        match state.input.take_if(|_| mine) {
            Some(mut input) => {
                state.scheduler.finish(ticket);
                // Queued writes that were done before are answered before.
                if !state.unsent.is_empty() {
                    let mut replies = std::mem::take(&mut state.unsent);
                    replies.unsplit(std::mem::take(&mut input.replies));
                    input.replies = replies;
                }
                drop(state);
                self.gather(id, response, &mut input, buffer)?;
                Ok(Some(input))
            }
            None => {
                drop(state);
                self.send_and_finish(ticket, id, response, buffer)?;
                Ok(None)
            }
        }
    }

    /// Gathers a small reply, as long as more requests are there; sends a large one.
    fn gather(
        &self,
        id: u32,
        response: Response,
        input: &mut Input,
        buffer: &mut ReadBuffer,
    ) -> io::Result<()> {
        match response {
            Response::Reply(reply) => reply.encode(id, &mut input.replies),
            Response::Data(length) => {
                let frame = buffer.frame(id, length);
                if length > SMALL_DATA_BYTES {
                    return input.send(frame, &self.sink);
                }
                input.replies.extend_from_slice(frame);
            }
        }
        input.flush_if_many(&self.sink)
    }
}
