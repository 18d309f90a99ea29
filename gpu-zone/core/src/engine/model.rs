use std::collections::BTreeMap;

/// A product name of GPUs, as a number: comparing names node by node is what a scheduler has no
/// time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelClass(u8);

impl ModelClass {
    /// The most product names that one cluster has.
    pub const MOST: usize = 128;

    /// The number, below [`ModelClass::MOST`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// More product names than one cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster's GPUs have more than {} product names; a node that reports made-up names is at fault",
    ModelClass::MOST
)]
pub struct TooManyModels;

/// The product names of a cluster's GPUs. Only what nodes report becomes one: a pod's constraint
/// is looked up, so that pods cannot use them up.
#[derive(Clone, Debug, Default)]
pub struct ModelTable {
    classes: BTreeMap<String, ModelClass>,
}

impl ModelTable {
    /// The class of a name that a node reports.
    ///
    /// # Errors
    /// When it would be one more than [`ModelClass::MOST`].
    pub fn class_of(&mut self, name: &str) -> Result<ModelClass, TooManyModels> {
        if let Some(class) = self.classes.get(name) {
            return Ok(*class);
        }
        let next = u8::try_from(self.classes.len()).map_err(|_| TooManyModels)?;
        if usize::from(next) >= ModelClass::MOST {
            return Err(TooManyModels);
        }
        self.classes.insert(name.to_owned(), ModelClass(next));
        Ok(ModelClass(next))
    }

    /// The models of these names that are known. No name known is [`ModelSet::NONE`], which no
    /// GPU is in.
    pub fn set_of<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> ModelSet {
        let known = names.into_iter().filter_map(|name| self.classes.get(name));
        known.fold(ModelSet::NONE, |set, class| set.with(*class))
    }

    /// All names, with their classes.
    pub fn names(&self) -> impl Iterator<Item = (&str, ModelClass)> {
        self.classes.iter().map(|(name, class)| (name.as_str(), *class))
    }
}

/// Which models of GPUs will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelSet(u128);

impl ModelSet {
    /// Any.
    pub const ANY: Self = Self(u128::MAX);
    /// None that is there.
    pub const NONE: Self = Self(0);

    /// These and one more.
    #[must_use]
    pub const fn with(self, class: ModelClass) -> Self {
        Self(self.0 | 1 << class.0)
    }

    /// Whether a GPU of this model will do.
    pub const fn contains(self, class: ModelClass) -> bool {
        self.0 >> class.0 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_classes_and_constraints_are_only_looked_up() {
        let mut table = ModelTable::default();
        let (a, b) = (table.class_of("A100").unwrap(), table.class_of("T4").unwrap());
        assert_eq!(table.class_of("A100"), Ok(a));
        let set = table.set_of(["T4", "H200"]);
        assert!(set.contains(b) && !set.contains(a));
        assert_eq!(table.set_of(["H200"]), ModelSet::NONE);
        assert_eq!(table.names().count(), 2);
        assert!(ModelSet::ANY.contains(a) && ModelSet::ANY.contains(b));
    }

    #[test]
    fn made_up_names_come_to_an_end() {
        let mut table = ModelTable::default();
        for n in 0..ModelClass::MOST {
            let class = table.class_of(&n.to_string()).unwrap();
            assert!(table.set_of([n.to_string().as_str()]).contains(class));
        }
        assert_eq!(table.class_of("one more"), Err(TooManyModels));
        assert!(table.class_of("0").is_ok());
    }
}
