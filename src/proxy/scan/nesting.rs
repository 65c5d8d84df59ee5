//! What is open around the current byte: objects and arrays, one bit each.

/// The open containers, from the outside in.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// The outermost 64; hardly any body has more.
    first: u64,
    more: Vec<u64>,
    depth: usize,
    /// Whether the innermost is an object; kept apart, for it is asked at every comma.
    object: bool,
}

impl Nesting {
    /// How many containers are open.
    #[inline]
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether the innermost container is an object; nothing outside of all.
    #[inline]
    pub(super) fn in_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.object)
    }

    /// Opens an object, or an array.
    pub(super) fn push(&mut self, object: bool) {
        let (word, bit) = place(self.depth);
        if word > self.more.len() {
            self.more.push(0);
        }
        let word = if word == 0 { Some(&mut self.first) } else { self.more.get_mut(word - 1) };
        if let Some(word) = word {
            *word = if object { *word | bit } else { *word & !bit };
        }
        self.depth += 1;
        self.object = object;
    }

    /// Closes the innermost.
    pub(super) fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        let (word, bit) = place(self.depth.saturating_sub(1));
        let word = if word == 0 { Some(&self.first) } else { self.more.get(word - 1) };
        self.object = word.is_some_and(|word| word & bit != 0);
    }
}

fn place(level: usize) -> (usize, u64) {
    (level / 64, 1 << (level % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_stack_of_booleans(steps in prop::collection::vec(any::<Option<bool>>(), 0..600)) {
            let (mut nesting, mut stack) = (Nesting::default(), Vec::new());
            for step in steps {
                match step {
                    Some(object) => { nesting.push(object); stack.push(object); }
                    None => if stack.pop().is_some() { nesting.pop(); },
                }
                prop_assert_eq!(nesting.in_object(), stack.last().copied());
                prop_assert_eq!(nesting.depth(), stack.len());
            }
        }
    }
}
