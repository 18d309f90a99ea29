use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_cuda_abi::CuResult;

use super::jit::Logs;
use crate::Answer;
use crate::abi::{Array, HostBytes, Out, Text, Word, entry_points};
use crate::driver::{current, driver};
use crate::handles::{self, Object};
use crate::link::Link;
use crate::module::Refusal;

/// A link and where its logs go.
pub(crate) struct Linking {
    pub(crate) link: Link,
    logs: Mutex<Logs>,
}

impl Linking {
    fn told<T>(&self, done: Result<T, Refusal>) -> Answer<T> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        done.map_err(|refusal| {
            logs.write_error(&refusal.log);
            refusal.result
        })
    }
}

fn add(state: Word, kind: u32, data: &[u8]) -> Answer {
    let linking = handles::link(state)?;
    linking.told(linking.link.add(kind, data))
}

entry_points! {
    fn cuLinkCreate_v2(
        count: u32, options: Array<u32>, values: Array<Word>, state: Out<Word>,
    ) {
        state.check()?;
        let logs = Mutex::new(Logs::read(count, options, values)?);
        let linking = Arc::new(Linking { link: Link::new(current()?), logs });
        state.put(handles::insert(|_| Object::Link(linking)))
    }

    fn cuLinkAddData_v2(
        state: Word, kind: u32, data: Word, size: usize, _name: Word,
        _count: u32, _options: Array<u32>, _values: Array<Word>,
    ) {
        add(state, kind, &HostBytes::new(data, size)?.to_vec())
    }

    fn cuLinkAddFile_v2(
        state: Word, kind: u32, path: Text,
        _count: u32, _options: Array<u32>, _values: Array<Word>,
    ) {
        let data = std::fs::read(path.read()?).map_err(|_| CuResult::FILE_NOT_FOUND)?;
        add(state, kind, &data)
    }

    fn cuLinkComplete(state: Word, image: Out<*const u8>, size: Out<usize>) {
        let linking = handles::link(state)?;
        let (address, length) = linking.told(linking.link.complete())?;
        size.put_if_wanted(length);
        image.put(address)
    }

    fn cuLinkDestroy(state: Word) {
        driver()?;
        handles::link(state)?;
        handles::remove(state);
        Ok(())
    }
}
