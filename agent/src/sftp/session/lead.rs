//! Leading: reading requests, doing them, and replying.

use std::{io, sync::Arc};

use super::{
    super::{
        SftpError,
        files::Done,
        input::{Begun, Frame, Input, Next},
    },
    Answer, Desk, SessionError, Shared, Table, Waiting, decode,
};

/// Data up to this size, in bytes, are gathered with other replies; more is sent at once.
const SMALL_DATA_BYTES: usize = 4 * 1024;

/// What is left when a thread stops leading.
enum Left {
    /// Nothing: the client has closed the connection.
    Nothing,
    /// The input, which somebody else has.
    Input,
}

impl Shared {
    /// Reads and does requests, until the input is taken by somebody else or the session ends.
    pub(super) fn lead(
        self: &Arc<Self>,
        input: Box<Input>,
        desk: &mut Desk,
    ) -> Result<(), SessionError> {
        let led = self.lead_on(input, desk);
        if !matches!(led, Ok(Left::Input)) {
            // Nothing more comes; what has come whole is done.
            self.wait_for_the_rest();
        }
        if matches!(led?, Left::Nothing) {
            self.end(None);
        }
        Ok(())
    }

    fn lead_on(
        self: &Arc<Self>,
        mut input: Box<Input>,
        desk: &mut Desk,
    ) -> Result<Left, SessionError> {
        while let Some(next) = input.next(&self.sink)? {
            let kept = match next {
                Next::Frame(frame) => self.lead_frame(input, frame, desk)?,
                Next::Write(begun) => self.lead_write(input, &begun, desk)?,
            };
            match kept {
                Some(kept) => input = kept,
                None => return Ok(Left::Input),
            }
        }
        Ok(Left::Nothing)
    }

    /// Does a request. Gives the input back if it was not taken.
    fn lead_frame(
        &self,
        mut input: Box<Input>,
        frame: Frame,
        desk: &mut Desk,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let (id, wanted) = decode(&frame)?;
        let mut table = self.lock();
        if table.ended {
            return Ok(None);
        }
        let claim = wanted.claim(&table.handles);
        if !table.order.may_start(&claim) {
            let frame = Box::from(&frame[..]);
            self.put_off(table, &mut input, claim, Waiting { frame })?;
            return Ok(Some(input));
        }
        let name = table.order.start(claim);
        let turn = self.lay_down(&mut table, input);
        let done = self.work(table, wanted, desk);
        drop(frame);
        self.pick_up(turn, name, id, done, desk)
    }

    /// Has a WRITE done whose data are still to come. Gives the input back if it was not taken.
    fn lead_write(
        self: &Arc<Self>,
        mut input: Box<Input>,
        begun: &Begun,
        desk: &mut Desk,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let Some(mut landing) = self.begin_landing(begun) else {
            // Whatever is special about it is seen to when it is here.
            let frame = input.read_begun(&self.sink)?;
            return self.lead_frame(input, frame, desk);
        };
        if let Err(error) = input.read_data(begun, landing.room(), &self.sink) {
            self.abandon(landing);
            return Err(error);
        }
        if !self.hand_over(landing) {
            let turn = self.lay_down(&mut self.lock(), input);
            self.land_all()?;
            let mut table = self.lock();
            let mine = table.turn == turn;
            return Ok(table.input.take_if(|_| mine));
        }
        Ok(Some(input))
    }

    /// Leaves the input on the table; returns how it is known to be still one's own.
    fn lay_down(&self, table: &mut Table, input: Box<Input>) -> u64 {
        table.turn += 1;
        table.input = Some(input);
        if std::mem::take(&mut table.asleep) {
            self.watch.notify_one();
        }
        table.turn
    }

    /// Replies to the request that is done. Gives the input back if it was not taken.
    fn pick_up(
        &self,
        turn: u64,
        name: u64,
        id: u32,
        done: Result<Done, (SftpError, bool)>,
        desk: &mut Desk,
    ) -> Result<Option<Box<Input>>, SessionError> {
        let (mut table, answer) = self.settle(done);
        let mine = table.turn == turn;
        match table.input.take_if(|_| mine) {
            Some(mut input) => {
                table.order.finish(name);
                // What has landed before is answered before.
                if !table.owed.is_empty() {
                    let mut replies = std::mem::take(&mut table.owed);
                    replies.unsplit(std::mem::take(&mut input.replies));
                    input.replies = replies;
                }
                drop(table);
                self.gather(id, answer, &mut input, desk)?;
                Ok(Some(input))
            }
            None => {
                drop(table);
                self.send_and_finish(name, id, answer, desk)?;
                Ok(None)
            }
        }
    }

    /// A leader's reply: small ones wait for more as long as more requests are there.
    fn gather(
        &self,
        id: u32,
        answer: Answer,
        input: &mut Input,
        desk: &mut Desk,
    ) -> io::Result<()> {
        match answer {
            Answer::Reply(reply) => reply.encode(id, &mut input.replies),
            Answer::Data(length) => {
                let frame = desk.frame(id, length);
                if length > SMALL_DATA_BYTES || frame.lent.is_some() {
                    return input.send(frame, &self.sink);
                }
                input.replies.extend_from_slice(frame.bytes);
            }
        }
        input.flush_if_many(&self.sink)
    }
}
