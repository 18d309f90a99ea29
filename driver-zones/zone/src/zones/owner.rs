//! The task that owns one zone: it alone changes the zone's state, and writes it down.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::record::{self, EnterError, Record};
use super::{START_LIMIT, ZoneError};
use crate::backend::Backend;
use crate::sandbox::Missing;
use crate::{Exit, ZoneEvent, ZoneState};

/// Between two attempts to end a zone, or to learn whether it is gone.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the last word of a zone that is gone is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Started<E> = Result<Vec<Missing>, ZoneError<E>>;
type Starting<E> = Pin<Box<dyn Future<Output = Started<E>> + Send>>;

#[derive(Debug)]
pub(super) enum Command<E: std::error::Error + 'static> {
    Start(oneshot::Sender<Started<E>>),
    End(Option<Duration>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) state: ZoneState,
    pub(super) exit: Option<Exit>,
}

pub(super) struct Owner<B: Backend> {
    backend: Arc<B>,
    zone: Arc<B::Zone>,
    path: PathBuf,
    record: Record,
    told: watch::Sender<Status>,
    commands: mpsc::UnboundedReceiver<Command<B::Error>>,
    /// What goes on in `Starting`, and who waits for it.
    starting: Option<Starting<B::Error>>,
    waiting: Option<oneshot::Sender<Started<B::Error>>>,
    grace: Option<Duration>,
}

/// What comes next in a zone's life.
enum Next<E: std::error::Error + 'static> {
    Command(Command<E>),
    Started(Started<E>),
    Gone(Exit),
}

impl<B: Backend> Owner<B> {
    pub(super) fn new(
        backend: Arc<B>,
        zone: Arc<B::Zone>,
        path: PathBuf,
        record: Record,
        told: watch::Sender<Status>,
        commands: mpsc::UnboundedReceiver<Command<B::Error>>,
    ) -> Self {
        let (starting, waiting, grace) = (None, None, None);
        Self { backend, zone, path, record, told, commands, starting, waiting, grace }
    }

    /// Until the zone has ended.
    pub(super) async fn run(mut self) {
        while self.record.state != ZoneState::Ended {
            match self.next().await {
                Next::Command(Command::Start(answer)) => self.start(answer),
                Next::Command(Command::End(grace)) => self.end(grace),
                Next::Started(started) => self.started(started),
                Next::Gone(exit) => self.gone(exit),
            }
        }
    }

    /// What is told first is done first; a zone that ends is stopped, again and again.
    async fn next(&mut self) -> Next<B::Error> {
        let (backend, zone) = (&*self.backend, &*self.zone);
        let ends = self.record.state == ZoneState::Ending;
        let grace = self.grace;
        let gone = async {
            loop {
                let exit =
                    if ends { backend.stop(zone, grace).await } else { backend.gone(zone).await };
                match exit {
                    Ok(exit) => return exit,
                    Err(_) => sleep(AGAIN).await,
                }
            }
        };
        let started = async {
            match &mut self.starting {
                Some(starting) => starting.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            started = started => Next::Started(started),
            // Commands end with the last handle; the zone does not.
            Some(command) = self.commands.recv() => Next::Command(command),
            exit = gone => self.last_words(exit).await,
        }
    }

    /// A zone that is gone may have begun, or said why not: who cleans up behind it can hold the other
    /// end of its line for a moment more.
    async fn last_words(&mut self, exit: Exit) -> Next<B::Error> {
        match &mut self.starting {
            Some(starting) => match timeout(LAST_WORDS, starting).await {
                Ok(started) => Next::Started(started),
                Err(_) => Next::Gone(exit),
            },
            None => Next::Gone(exit),
        }
    }

    fn start(&mut self, answer: oneshot::Sender<Started<B::Error>>) {
        match self.enter(ZoneEvent::Start) {
            Ok(()) => {}
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        }
        let (backend, zone) = (Arc::clone(&self.backend), Arc::clone(&self.zone));
        self.waiting = Some(answer);
        self.starting = Some(Box::pin(async move {
            match timeout(START_LIMIT, backend.start(&zone)).await {
                Ok(started) => started.map_err(ZoneError::Backend),
                Err(_) => Err(ZoneError::Late(START_LIMIT)),
            }
        }));
    }

    fn started(&mut self, started: Started<B::Error>) {
        self.starting = None;
        let started = started.and_then(|missing| self.enter(ZoneEvent::Begun).map(|()| missing));
        if started.is_err() {
            self.end_now(ZoneEvent::Failed);
        }
        self.answer(started);
    }

    fn end(&mut self, grace: Option<Duration>) {
        // Whoever asks again without patience gets what he asks for.
        self.grace = grace;
        self.end_now(ZoneEvent::End);
        self.answer(Err(ZoneError::Ended));
    }

    /// Goes on to `Ending`, written down or not: to leave it running would be worse.
    fn end_now(&mut self, event: ZoneEvent) {
        self.starting = None;
        match self.enter(event) {
            Ok(()) => {}
            Err(_) => self.tell(ZoneState::Ending, None),
        }
    }

    fn gone(&mut self, exit: Exit) {
        self.starting = None;
        // One that stays names a process that is gone, and does no harm.
        let _ = crate::files::remove(&self.path);
        let state = self.record.state.after(ZoneEvent::Gone).unwrap_or(ZoneState::Ended);
        self.tell(state, Some(exit));
        self.answer(Err(ZoneError::Ended));
    }

    fn answer(&mut self, started: Started<B::Error>) {
        if let Some(waiting) = self.waiting.take() {
            let _ = waiting.send(started);
        }
    }

    /// Writes down the state after `event`, then takes it on.
    fn enter(&mut self, event: ZoneEvent) -> Result<(), ZoneError<B::Error>> {
        let path = &self.path;
        match record::enter(&mut self.record, event, |record| record::write(path, record)) {
            Ok(true) => self.tell(self.record.state, None),
            Ok(false) => {}
            Err(EnterError::Wrong(wrong)) => return Err(wrong.into()),
            Err(EnterError::Record(error)) => return Err(ZoneError::Record(error)),
        }
        Ok(())
    }

    fn tell(&mut self, state: ZoneState, exit: Option<Exit>) {
        self.record.state = state;
        self.told.send_replace(Status { state, exit });
    }
}
