//! Makers that are killed, and those whose brokers are.

use gpuzone_zone::Exit;
use rustix::process::Signal;

use crate::support::{eventually, groups_of, host_has};
use crate::zone::{DriverZone, NEEDED, files};

#[tokio::test]
async fn a_killed_maker_leaves_what_ran_and_nothing_else() {
    if !host_has("a_killed_maker_leaves_what_ran_and_nothing_else", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (process, maker) = zone.made().await;
    let runs = maker.make("lease-1", "worker", files()).await.unwrap();
    runs.start().await.unwrap();
    let held = maker.make("lease-2", "worker", files()).await.unwrap();
    process.signal(Signal::KILL).unwrap();
    process.exited().await.unwrap();
    // Who asked hears of it, and not that a worker ended.
    maker.lost().await;
    assert!(maker.make("lease-3", "worker", files()).await.is_err());
    assert!(eventually(|| held.is_gone().unwrap()), "it waits for orders that nobody gives");
    assert!(!runs.is_gone().unwrap());
    let (process, next) = zone.made().await;
    let found: Vec<_> = next.list().iter().map(|zone| zone.process()).collect();
    assert_eq!(found, [runs.process()]);
    assert_eq!(zone.listing(), ["lease-1.zone"]);
    assert_eq!(next.get("lease-1").unwrap().end().await.unwrap(), Exit::Unknown);
    assert!(runs.is_gone().unwrap());
    next.close().await;
    assert_eq!(process.exited().await.unwrap(), Exit::Code(0));
    for zone in [&runs, &held] {
        let pid = zone.process().pid;
        assert!(eventually(|| groups_of(pid).is_empty()), "{:?}", groups_of(pid));
    }
    assert_eq!(zone.listing(), Vec::<String>::new());
}

/// Wherever in a start it is, and whichever of the two is killed.
#[tokio::test]
async fn no_moment_of_a_start_is_a_bad_one() {
    if !host_has("no_moment_of_a_start_is_a_bad_one", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let mut kept = 0;
    for moment in 0..16_u64 {
        let (process, maker) = zone.made().await;
        let made = maker.make("lease-1", "worker", files()).await.unwrap();
        let starting = made.clone();
        let start = tokio::spawn(async move { starting.start().await.is_ok() });
        tokio::time::sleep(std::time::Duration::from_millis(moment * 4)).await;
        let killed = moment % 2 == 0;
        if killed {
            process.signal(Signal::KILL).unwrap();
        } else {
            // The broker's end of the line closes.
            maker.close().await;
        }
        process.exited().await.unwrap();
        let begun = start.await.unwrap();
        let (process, next) = zone.made().await;
        // Kept, if it was known to run; else it is ended, whatever it would have become. A maker that
        // ends by itself may end one that has just begun: nobody is there to hear of it.
        let found = next.get("lease-1");
        assert!(found.is_some() || !begun || !killed, "moment {moment}: one that ran is gone");
        match found {
            Some(found) => {
                kept += 1;
                found.end().await.unwrap();
            }
            None => assert!(made.is_gone().unwrap(), "moment {moment}: it runs, and nobody knows"),
        }
        next.close().await;
        process.exited().await.unwrap();
        assert_eq!(zone.listing(), Vec::<String>::new(), "moment {moment}");
        let pid = made.process().pid;
        assert!(eventually(|| groups_of(pid).is_empty()), "{:?}", groups_of(pid));
    }
    println!("{kept} of 16 zones ran and were kept");
}

#[tokio::test]
async fn two_makers_do_not_share_a_folder() {
    if !host_has("two_makers_do_not_share_a_folder", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (first, maker) = zone.made().await;
    let waits = zone.made();
    tokio::pin!(waits);
    let soon = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, &mut waits).await.is_err(), "the first has the folder");
    maker.close().await;
    first.exited().await.unwrap();
    let (second, maker) = waits.await;
    maker.close().await;
    assert_eq!(second.exited().await.unwrap(), Exit::Code(0));
}
