use std::path::Path;
use std::time::{Duration, Instant};

use gpuzone_api::AgentClient;
use gpuzone_api::agent::v1::{EndLeaseRequest, ListLeasesRequest, ShutdownRequest};
use gpuzone_core::ZoneName;
use tokio::time::sleep;

use crate::arguments::{Format, Stop};
use crate::commands::{Context, answer};
use crate::error::{CliError, Kind};
use crate::output;
use crate::run::shared;

/// How long an agent that has ended all leases may take to go.
const GOODBYE_LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn stop(context: &Context, stop: Stop) -> Result<(), CliError> {
    let mut agent = context.connect().await?;
    if stop.agent {
        let ended = answer(agent.shutdown(ShutdownRequest {}).await)?.ended_leases;
        drop(agent);
        wait_until_gone(&context.directories.agent_socket()).await?;
        return match context.format {
            Format::Table | Format::Csv => {
                output::print(&format!("The agent has ended, and {ended} lease(s) with it.\n"))
            }
            Format::Json => {
                output::print_json(&serde_json::json!({ "agent": "ended", "leases": ended }))
            }
        };
    }
    let leases = if let Some(zone) = &stop.zone {
        let kept = shared::stop(context, zone).await?;
        let leases = of_zone(&mut agent, zone).await?;
        if !kept && leases.is_empty() {
            return Err(shared::Door::of(zone, &context.directories)?.absent());
        }
        leases
    } else if stop.all {
        let leases = answer(agent.list_leases(ListLeasesRequest {}).await)?.leases;
        leases.into_iter().map(|lease| lease.id).collect()
    } else {
        stop.leases.iter().map(ToString::to_string).collect()
    };
    end(context, &mut agent, leases).await
}

/// The leases of a zone that programs share: one, unless an earlier one's end is not through.
async fn of_zone(agent: &mut AgentClient, zone: &ZoneName) -> Result<Vec<String>, CliError> {
    let leases = answer(agent.list_leases(ListLeasesRequest {}).await)?.leases;
    let of_zone =
        leases.into_iter().filter(|lease| lease.zone_name.as_deref() == Some(zone.as_str()));
    Ok(of_zone.map(|lease| lease.id).collect())
}

/// The agent answers before it ends; its socket is the last thing that it takes away.
async fn wait_until_gone(socket: &Path) -> Result<(), CliError> {
    let began = Instant::now();
    while socket.exists() {
        if began.elapsed() > GOODBYE_LIMIT {
            let message = "the agent has ended all leases, but is still there itself";
            return Err(CliError::new(Kind::Unavailable, message).hint("look at its log"));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Ends each; one that cannot be ended keeps none of the others from it.
async fn end(
    context: &Context,
    agent: &mut AgentClient,
    leases: Vec<String>,
) -> Result<(), CliError> {
    let (mut ended, mut failure) = (Vec::new(), None);
    for lease in leases {
        let request = EndLeaseRequest { lease_id: lease.clone() };
        match answer(agent.end_lease(request).await) {
            Ok(_) => ended.push(lease),
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    earlier.show(context.format);
                }
            }
        }
    }
    match context.format {
        Format::Table | Format::Csv => {
            let lines = ended.iter().map(|lease| format!("{lease} has ended.\n"));
            output::print(&lines.collect::<String>())?;
        }
        Format::Json => output::print_json(&serde_json::json!({ "ended": ended }))?,
    }
    failure.map_or(Ok(()), Err)
}
