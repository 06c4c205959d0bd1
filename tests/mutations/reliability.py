"""What keeps a run going and loses nothing."""

from tests.mutations.mutation import Mutation

BAD_STEP = "tests/distributed/test_step_guard.py::test_a_bad_step_changes_nothing_in_any_part_of_a_model"
STANDSTILL = "tests/faults/test_watch.py::test_a_rank_that_stands_still_is_named_and_all_are_ended"

RELIABILITY = [
    Mutation(
        "checkpoint: the files' hashes are not looked at",
        "elif hashes and hash_file(path, beat) != entry.sha256:",
        "elif False:",
        "tests/unit/checkpoint/test_fragments.py::test_every_flipped_bit_is_found",
    ),
    Mutation(
        "checkpoint: the manifest's own digest is not looked at",
        "if computed is None or written != computed:",
        "if computed is None:",
        "tests/unit/checkpoint/test_manifest.py::test_a_changed_number_is_noticed",
    ),
    Mutation(
        "checkpoint: a flight is committed before its files are written",
        "return self._flight is not None and not self._flight[2].done()",
        "return False",
        "tests/unit/checkpoint/test_saving.py::test_a_save_is_not_there_before_it_is_settled",
    ),
    Mutation(
        "checkpoint: files are written over",
        'open(path, "xb") as file:',
        'open(path, "wb") as file:',
        "tests/unit/checkpoint/test_fragments.py::test_files_are_never_written_over_and_follow_the_umask",
    ),
    Mutation(
        "data folders: a folder is read as often as links lead to it",
        "        if real in seen:",
        "        if len(seen) > 9:",
        "tests/unit/test_files.py::test_links_are_followed_and_everything_is_taken_once",
    ),
    Mutation(
        "data folders: links that lead nowhere are passed over",
        '    if not path.exists():\n        raise DataError(f"{path}: is a link',
        '    if False:\n        raise DataError(f"{path}: is a link',
        "tests/unit/test_files.py::test_a_link_that_leads_nowhere_is_an_error",
    ),
    Mutation(
        "prepared texts: what has changed is not told",
        "if before.get(path) != after.get(path))",
        "if False)",
        "tests/unit/text/test_origin.py::test_what_changed_is_named_and_what_was_prepared_is_used",
    ),
    Mutation(
        "prepared texts: any other corpus is the one that was moved",
        '    return _sizes(now) == _sizes(kept.get("files", {}))',
        "    return True",
        "tests/unit/text/test_origin.py::test_a_corpus_that_was_moved_is_known_again_and_another_is_not",
    ),
    Mutation(
        "other data: their order goes on where the old one's was",
        "return replace(state, consumed_samples=0, data_digest",
        "return replace(state, data_digest",
        "tests/distributed/test_resume.py::test_a_finished_run_goes_on_with_other_texts_where_that_is_allowed",
    ),
    Mutation(
        "texts: what is no text is read to the end of its file before anything is said",
        "and (error is None or self.count > _FEW)",
        "and error is None",
        "tests/unit/text/test_sources.py::test_a_wrong_field_is_found_out_soon",
    ),
    Mutation(
        "ranks: nobody says for whom they wait",
        "            if now > min(self._say_at, self._deadline):",
        "            if now > self._deadline:",
        "tests/unit/parallel/test_meeting.py::test_who_is_awaited_is_said_once_and_at_the_end",
    ),
    Mutation(
        "the harness: kept answers are those of all models",
        "            answers.tablename = self._identity",
        "            pass",
        "tests/unit/export/test_harness.py::test_answers_kept_by_the_harness_are_those_of_one_model",
    ),
    Mutation(
        "norms: a CPU sums all squares in fp32 one by one",
        '    if tensors[0].device.type == "cpu":',
        "    if False:",
        "tests/unit/engine/test_engine.py::test_the_norm_of_long_gradients_loses_nothing",
    ),
    Mutation(
        "prepared files: their blocks are not compared",
        "if hashlib.blake2b(data, digest_size=_SUM).digest() != said[",
        "if b'' == said[",
        "tests/unit/text/test_opening.py::test_damage_is_named_and_nothing_is_overwritten",
    ),
    Mutation(
        "preparing: processes that stand still are waited for",
        "if waited > self._limit:",
        "if False:",
        "tests/unit/text/test_chunks.py::test_workers_that_stand_still_are_an_error_or_are_left_at_once",
    ),
    Mutation(
        "signals: those of other ranks do not end the main rank's work",
        "            if is_asked():\n",
        "            if False:\n",
        "tests/distributed/test_agree.py::test_a_signal_to_any_rank_ends_the_main_ranks_work_in_seconds",
    ),
    Mutation(
        "guard: every step is taken",
        "return self.verdict is StepVerdict.GOOD or (self.verdict.is_spike and not self.refuses_spikes)",
        "return True",
        BAD_STEP,
    ),
    Mutation(
        "guard: each rank judges by its own part",
        'agreed = self.mesh.all_reduce(own, op="max")',
        "agreed = own",
        BAD_STEP,
    ),
    Mutation(
        "guard: spikes are not looked for",
        "return (figure - middle) / max(scale, self.floor)",
        "return 0.0",
        "tests/distributed/test_step_guard.py::test_a_spike_is_only_seen_if_so_chosen",
    ),
    Mutation(
        "resume: samples left out are forgotten",
        'for first, end in state.get("left_out", [])]',
        "for first, end in []]",
        "tests/distributed/test_resume.py::"
        "test_a_run_that_goes_back_leaves_the_bad_batch_out_also_when_it_is_killed_and_resumed",
    ),
    Mutation(
        "integrity: copies are not compared",
        "for number in (lowest != highest).nonzero()",
        "for number in (lowest != lowest).nonzero()",
        "tests/distributed/test_integrity.py::test_a_bit_in_one_copy_is_found_and_named",
    ),
    Mutation(
        "integrity: what one rank holds is not looked at",
        "            if is_wrong\n",
        "            if False\n",
        "tests/distributed/test_integrity.py::test_a_bit_in_a_partition_is_found_where_it_makes_no_sense",
    ),
    Mutation(
        "integrity: statistics are not compared",
        'copies.append(_Copy(name, "value", axes, _sum_bits(statistic.values.flatten(), 0)))',
        "pass",
        "tests/distributed/test_statistics.py::test_a_rank_whose_copy_differs_is_named",
    ),
    Mutation(
        "checkpoint: statistics are not loaded",
        "part.copy_(torch.from_numpy(values).view(part.shape))",
        "pass",
        "tests/unit/checkpoint/test_statistics.py::test_what_any_layout_saves_any_other_loads",
    ),
    Mutation(
        "import: statistics are not taken",
        "statistic.values.copy_(_read(foreign, config, statistic.spec))",
        "pass",
        "tests/unit/export/test_importing_pictures.py::test_every_trail_of_density_one_is_the_dense_model",
    ),
    Mutation(
        "export: what was read back is not compared",
        "if not difference <= TOLERANCE * max(largest, 1.0):",
        "if False:",
        "tests/unit/export/test_pictures.py::test_statistics_that_are_not_the_checkpoints_leave_nothing",
    ),
    Mutation(
        "signals: nobody says that it was asked",
        "return mesh.any(self.is_set)[0]",
        "return mesh.any(False)[0]",
        "tests/distributed/test_preemption.py::test_a_signal_is_noticed_where_no_step_is_done",
    ),
    Mutation(
        "signals: a second one is like the first",
        "if self.is_set and time.monotonic() - self._at > SAME_SECONDS:",
        "if False:",
        "tests/unit/training/test_signals.py::"
        "test_a_second_signal_leaves_at_once_although_the_main_thread_waits_in_a_library",
    ),
    Mutation(
        "watch: no rank is ever late",
        "view.late = self._late > 1",
        "view.late = False",
        STANDSTILL,
    ),
    Mutation(
        "watch: a silent host is not missed",
        "view.silent += since",
        "pass",
        STANDSTILL,
    ),
    Mutation(
        "watch: a watcher that died is not replaced",
        "if self.is_ending.wait(pause):",
        "if True:",
        STANDSTILL,
    ),
    Mutation(
        "watch: strangers may stay",
        "if link.closed or number < many or now - since > HELLO_SECONDS:",
        "if False:",
        "tests/unit/watch/test_watching.py::test_whoever_does_not_know_the_secret_is_few_and_short_lived",
    ),
    Mutation(
        "messages end a run where nobody reads them",
        "if self._takes():\n                    self._stream.write(",
        "if True:\n                    self._stream.write(",
        "tests/unit/test_command_line.py::test_nobody_who_reads_messages_ends_or_holds_up_nothing",
    ),
    Mutation(
        "what the system refuses of a file is a bug",
        "if error.filename is not None or error.errno in _FULL:",
        "if False:",
        "tests/unit/test_command_line.py::test_ends",
    ),
    Mutation(
        "metrics: a run that goes back needs room on the disk",
        "    if all(kept[:count]):",
        "    if False:",
        "tests/unit/training/test_metrics_log.py::test_lines_in_order_are_cut_where_they_stand",
    ),
    Mutation(
        "watch: a dead rank is not announced",
        "if self.view.gone and self.view.code is None and not self.has_announced:",
        "if False:",
        "tests/faults/test_watch.py::test_a_dead_rank_is_the_first_error",
    ),
    Mutation(
        "ranks wait for long work in a collective",
        "while not mesh.is_main and not is_done():",
        "while False:",
        "tests/distributed/test_agree.py::test_ranks_that_wait_for_the_main_ranks_work_look_about_meanwhile",
    ),
    Mutation(
        "a run goes back without the save that was under way",
        "self.saver.settle()  # what was copied before this step is good, whatever follows",
        "pass",
        "tests/unit/training/test_loop.py::test_a_run_goes_back_to_the_save_that_was_under_way",
    ),
    Mutation(
        "shells of other hosts are handed what they would act on",
        '[[ "$argument" != *[',
        'true || [[ "$argument" != *[',
        "tests/unit/test_launch_scripts.py::test_nothing_that_a_shell_would_act_on_is_handed_to_other_hosts",
    ),
]
