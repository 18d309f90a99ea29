//! What the agent says of its GPUs, as it changes.

use std::time::Duration;

use gpuzone_api::agent::v1::agent_client::AgentClient;
use gpuzone_api::agent::v1::{WatchGpusReply, WatchGpusRequest};

use super::{AgentLink, LinkError};

/// The agent answers a watch with its state, at once.
const PATIENCE: Duration = Duration::from_secs(5);

impl AgentLink {
    /// Has `each` take every state that the agent sends, until there is no more to be had: that
    /// is the error. An agent that hangs is one that sends nothing.
    pub(crate) async fn follow(&self, mut each: impl FnMut(WatchGpusReply)) -> LinkError {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut client = AgentClient::new(channel);
        let asked = tokio::time::timeout(PATIENCE, client.watch_gpus(WatchGpusRequest {})).await;
        let mut states = match asked {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return LinkError::Agent(status.message().to_owned()),
            Err(_) => return silence(PATIENCE),
        };
        let mut limit = PATIENCE;
        loop {
            let state = match tokio::time::timeout(limit, states.message()).await {
                Ok(Ok(Some(state))) => state,
                Ok(Ok(None)) => return LinkError::Agent("it ends".to_owned()),
                Ok(Err(status)) => return LinkError::Agent(status.message().to_owned()),
                Err(_) => return silence(limit),
            };
            let said = Duration::from_millis(state.silence_limit_ms.into());
            limit = said.clamp(Duration::from_secs(1), Duration::from_secs(60));
            each(state);
        }
    }
}

fn silence(limit: Duration) -> LinkError {
    LinkError::Agent(format!("it says nothing of its GPUs for {limit:?}"))
}
