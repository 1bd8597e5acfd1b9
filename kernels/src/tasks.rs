//! Rows cut into tasks: by shape alone, so that no number of threads can change a result.

use rayon::prelude::*;

/// Elements of an output that one task works on.
pub(crate) const TASK: usize = 1 << 14;

/// Fewer elements than this are worked on where they are: waking another thread takes longer.
const ALONE: usize = 2 * TASK;

/// Rows of `width` elements that make a task.
pub(crate) fn rows_of_a_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Calls `run` for every task and its index; all tasks together write `elements`.
pub(crate) fn each<T: Send>(tasks: Vec<T>, elements: usize, run: impl Fn(usize, T) + Sync) {
    if elements <= ALONE {
        tasks.into_iter().enumerate().for_each(|(index, task)| run(index, task));
    } else {
        tasks.into_par_iter().enumerate().for_each(|(index, task)| run(index, task));
    }
}

/// Calls `run` with the first row and the rows themselves of every task that `outputs`, all of the
/// same length in rows of `width`, are cut into.
pub(crate) fn rows<T: Send, const N: usize>(
    width: usize,
    outputs: [&mut [T]; N],
    run: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let elements = outputs.iter().map(|output| output.len()).max().unwrap_or(0);
    if elements <= ALONE {
        return run(0, outputs);
    }
    let rows = rows_of_a_task(width);
    let mut chunks = outputs.map(|output| output.chunks_mut(rows * width));
    let tasks: Vec<[&mut [T]; N]> = (0..elements.div_ceil(rows * width))
        .map(|_| chunks.each_mut().map(|chunks| chunks.next().unwrap_or_default()))
        .collect();
    each(tasks, elements, |index, outputs| run(index * rows, outputs));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_given_out_once_with_its_number() {
        for (width, count) in [(3, 0), (3, 5), (3, 40_001), (70_000, 3), (1, 100_000)] {
            let (mut first, mut second) = (vec![0; width * count], vec![0; width * count]);
            rows(width, [&mut first, &mut second], |from, [first, second]| {
                assert_eq!(first.len(), second.len());
                for (row, values) in first.chunks_mut(width).enumerate() {
                    for value in values {
                        *value += from + row + 1;
                    }
                }
                for value in second {
                    *value += 1;
                }
            });
            let numbered = |(i, value): (usize, &usize)| *value == i / width + 1;
            assert!(first.iter().enumerate().all(numbered), "{width} x {count}");
            assert!(second.iter().all(|value| *value == 1));
        }
    }
}
