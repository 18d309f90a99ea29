//! Bringing what the agent says to the API server, however often that is away.

use std::time::Duration;

use gpuzone_api::kubernetes::NodeName;
use kube::Client;
use tokio::sync::{mpsc, watch};

use super::condition::{Condition, verdict};
use super::events::{Events, changes, of_kubelet};
use super::{NodeGpus, Word};
use crate::links::LinkError;
use crate::publish::{Published, Publisher};

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is written to the API server, of one node.
pub(crate) struct Reporter {
    publisher: Publisher,
    events: Events,
    condition: Condition,
    /// What was last said of each of them, so that it is said once.
    said: [String; 3],
}

impl Reporter {
    pub(crate) fn new(client: Client, node: NodeName) -> Self {
        Self {
            publisher: Publisher::new(client.clone(), node.clone()),
            events: Events::new(client.clone(), node.clone()),
            condition: Condition::new(client, node),
            said: Default::default(),
        }
    }

    /// Reports for ever what the agent says, and what is wrong with the kubelet.
    pub(crate) async fn report(
        mut self,
        mut words: watch::Receiver<Word>,
        mut notices: mpsc::Receiver<String>,
    ) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let word = words.borrow_and_update().clone();
            let done = self.once(&word).await;
            let again = async {
                match done {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(pause).await,
                }
            };
            let changed = tokio::select! {
                changed = words.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                Some(notice) = notices.recv() => {
                    self.events.add(vec![of_kubelet(notice)]);
                    true
                }
                () = again => false,
            };
            pause = match done || changed {
                true => SHORTEST_PAUSE,
                false => (pause * 2).min(LONGEST_PAUSE),
            };
        }
    }

    /// Writes all that is new; whether there is nothing left to try again.
    async fn once(&mut self, word: &Word) -> bool {
        let published = match word {
            Word::Says(gpus) => self.publish(gpus).await,
            Word::None | Word::Silent(_) => Ok(()),
        };
        let mut done = settled(&mut self.said[0], "the node's GPUs", &published);
        let told = self.events.tell().await;
        if matches!(told, Err(LinkError::Denied { .. })) {
            self.events.give_up();
        }
        done &= settled(&mut self.said[1], "an event", &told);
        if let Some(verdict) = verdict(word) {
            let written = self.condition.write(&verdict).await;
            done &= settled(&mut self.said[2], "the node's condition", &written);
        }
        done
    }

    async fn publish(&mut self, gpus: &NodeGpus) -> Result<(), LinkError> {
        let Published { before } = self.publisher.publish(&gpus.status).await?;
        if let Some(before) = before {
            self.events.add(changes(before.as_ref(), &gpus.status));
        }
        Ok(())
    }
}

/// Whether it is written; what went wrong is said once, and tried again.
fn settled(said: &mut String, what: &str, written: &Result<(), LinkError>) -> bool {
    let Err(error) = written else {
        said.clear();
        return true;
    };
    let text = error.to_string();
    if text != *said {
        tracing::warn!(error = text, "{what} is not written");
        *said = text;
    }
    false
}
