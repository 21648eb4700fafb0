"""The numbered cases of failures and the tests that show what happens in them.

A case without tests does not apply to visionkit any more. Numbers have gaps.
"""

CASES: dict[int, list[str]] = {
    1: [
        "config/test_yaml.py::test_tags_that_could_run_code_are_refused_and_do_not_run",
        "config/test_yaml.py::test_override_flow_values_are_as_strict_as_files",
    ],
    2: [
        "config/test_yaml.py::test_duplicate_key_names_both_lines",
    ],
    3: [
        "config/test_yaml.py::test_scalars_mean_the_same_in_a_file_and_in_an_override",
    ],
    5: [
        "config/test_config.py::test_all_problems_are_told_at_once_with_their_lines",
    ],
    6: [
        "config/test_schema.py::test_misfits_and_their_description",
        "config/test_config_faults.py::test_of_several_mistakes_in_a_file_each_has_its_line",
    ],
    7: [
        "config/test_config_faults.py::test_a_value_out_of_range_is_answered_with_the_range",
    ],
    8: [
        "config/test_yaml.py::test_bad_files_are_refused_with_file_and_line",
        "config/test_yaml.py::test_bom_and_windows_line_ends_are_fine",
        "config/test_config_faults.py::test_a_file_of_5_mb_is_not_read_whole",
        "config/test_config_faults.py::test_a_dict_that_holds_itself_is_refused",
        "config/test_config_faults.py::test_text_that_can_name_no_file_is_refused",
    ],
    9: [
        "config/test_yaml.py::test_paths_that_are_no_config",
        "config/test_config_faults.py::test_a_config_that_may_not_be_read_is_told",
    ],
    10: [
        "config/test_config.py::test_missing_sections",
        "config/test_components.py::test_unknown_types_are_answered_with_the_valid_ones",
        "config/test_config_faults.py::test_a_value_out_of_range_is_answered_with_the_range",
    ],
    11: [
        "config/test_config_faults.py::test_a_head_and_data_that_do_not_belong_together_are_both_named",
        "config/test_config_faults.py::test_a_device_that_is_not_there_is_told",
        "config/test_config.py::test_problems_of_the_long_form",
    ],
    13: [
        "config/test_config_faults.py::test_nothing_is_expanded",
    ],
    14: [
        "runs/test_directory.py::test_strange_names_of_run_directories",
        "runs/test_directory.py::test_a_run_is_not_replaced_unless_told_so",
        "runs/test_directory.py::test_an_output_that_cannot_be_a_directory",
        "runs/test_directory.py::test_a_number_taken_meanwhile_is_left_to_the_other",
    ],
    15: [
        "config/test_config.py::test_shipped_configs_reload_to_themselves",
        "config/test_config_faults.py::test_what_a_config_resolves_to_loads_to_the_same",
        "config/test_yaml.py::test_whatever_is_dumped_reads_back",
    ],
    16: [
        "config/test_base.py::test_a_newer_version_says_what_to_do_and_nothing_else",
        "runs/test_checkpoint.py::test_newer_formats_and_other_files_are_refused",
    ],
    17: [
        "data/test_coco_faults.py::test_files_that_are_not_coco",
        "data/test_coco_faults.py::test_missing_annotation_file",
        "data/test_coco_faults.py::test_files_that_are_packed_or_hold_a_list_twice",
        "data/test_coco.py::test_byte_order_marks_and_utf16_are_read",
    ],
    18: [
        "data/test_coco_faults.py::test_files_that_are_not_coco",
    ],
    20: [
        "data/test_coco_index.py::test_a_key_that_is_there_twice_is_refused",
        "data/test_coco_faults.py::test_files_that_are_packed_or_hold_a_list_twice",
    ],
    21: [
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
        "data/test_coco_faults.py::test_ids_of_any_order_and_sign_and_boxes_of_any_size",
    ],
    22: [
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
    ],
    23: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "engine/test_check.py::test_images_of_both_splits_are_found_by_path_and_by_content",
    ],
    24: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "metrics/test_coco_evaluator.py::test_annotations_with_the_same_id_all_count",
    ],
    26: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
    ],
    27: [
        "data/test_coco_faults.py::test_ids_of_any_order_and_sign_and_boxes_of_any_size",
        "metrics/test_coco_evaluator.py::test_the_evaluator_writes_the_files_own_ids_and_merges_processes",
    ],
    29: [
        "data/test_fault_policies.py::test_remarks_about_a_whole_file",
        "engine/test_check.py::test_classes_that_only_validation_data_have",
    ],
    30: [
        "data/test_coco.py::test_other_classes_are_an_error_with_both_lists",
        "data/test_coco.py::test_classes_are_matched_by_name",
    ],
    31: [
        "data/test_coco_faults.py::test_files_that_are_not_coco",
        "cli/test_cli.py::test_training_without_any_object_is_refused",
        "metrics/test_coco_files.py::test_without_objects_figures_are_null_and_without_detections_zero",
    ],
    32: [
        "data/test_coco_index.py::test_every_record_comes_back",
    ],
    33: [
        "data/test_coco.py::test_missing_area_and_iscrowd",
        "data/test_fault_policies.py::test_iscrowd_of_another_kind_is_taken_for_what_it_says",
        "data/test_fault_policies.py::test_remarks_about_a_whole_file",
    ],
    34: [
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
        "data/test_coco.py::test_size_mismatch_names_both_and_hints_at_exif",
    ],
    35: [
        "data/test_memory_of_bad_data.py::test_the_memory_of_two_million_objects_is_bounded",
    ],
    36: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_coco.py::test_unusable_boxes_are_left_out_counted_and_logged_once",
    ],
    37: [
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
    ],
    39: [
        "data/test_coco_faults.py::test_ids_of_any_order_and_sign_and_boxes_of_any_size",
        "models/test_contracts.py::test_images_without_objects",
        "models/test_rcnn.py::test_images_without_objects_give_finite_losses",
    ],
    40: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_fault_policies.py::test_duplicates_are_those_of_one_image_class_and_box",
    ],
    41: [
        "data/test_transforms.py::test_boxes_equal_a_point_by_point_reference",
    ],
    43: [
        "engine/test_check.py::test_images_without_one_object_are_named_to_who_localizes",
    ],
    44: [
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_fault_policies.py::test_what_a_fix_makes_of_an_object",
    ],
    45: [
        "data/test_memory_of_bad_data.py::test_absurd_coordinates_are_refused_in_a_second_and_little_memory",
    ],
    46: [
        "data/test_check_annotations.py::test_outlines_against_boxes_and_areas",
    ],
    49: [
        "data/test_coco.py::test_objects_without_a_segmentation_get_an_empty_mask",
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_check_annotations.py::test_outlines_against_boxes_and_areas",
    ],
    50: [
        "data/test_fault_policies.py::test_each_policy_of_each_kind",
        "data/test_fault_policies.py::test_areas_that_cannot_be",
        "data/test_check_annotations.py::test_outlines_against_boxes_and_areas",
    ],
    51: [
        "engine/test_check.py::test_label_maps",
        "data/test_label_maps.py::test_values_beyond_the_classes",
        "data/test_label_maps.py::test_unpaired_files_are_all_named",
        "data/test_image_io.py::test_label_maps_keep_their_numbers",
        "models/test_semantic.py::test_images_of_ignored_pixels_alone_give_zero",
    ],
    52: [
        "data/test_check_images.py::test_each_fault_is_found_with_its_place",
        "data/test_check_images.py::test_a_jpeg_without_its_end_mark_is_judged_alike",
        "data/test_image_io.py::test_files_that_are_not_images",
        "data/test_image_io.py::test_what_is_not_a_regular_file_is_not_an_image",
        "data/test_image_io.py::test_damaged_files_give_data_errors_only",
        "data/test_image_io.py::test_the_content_decides_not_the_suffix",
        "data/test_unreadable_images.py::test_all_unreadable_images_are_listed_before_training",
    ],
    54: [
        "data/test_image_io.py::test_each_mode_has_exact_values",
        "data/test_image_io.py::test_16_bits_are_scaled_not_clipped",
        "data/test_image_io.py::test_cmyk_and_ycbcr_jpegs",
        "data/test_image_io.py::test_lab",
        "data/test_image_io.py::test_values_without_meaning_are_refused_not_clipped",
        "data/test_image_io.py::test_exif_orientation",
        "data/test_check_images.py::test_what_reading_drops_is_reported",
    ],
    57: [
        "data/test_image_bombs.py::test_bombs_are_refused_in_little_memory",
        "data/test_image_io.py::test_size_is_checked_before_decoding",
    ],
    59: [
        "data/test_unreadable_images.py::test_a_image_that_changes_after_the_check",
        "data/test_unreadable_images.py::test_images_that_change_after_the_check_may_be_replaced",
        "data/test_unreadable_images.py::test_the_replacement_depends_on_neither_workers_nor_start",
        "data/test_unreadable_images.py::test_too_many_end_training",
        "data/test_unreadable_images.py::test_validation_never_skips",
        "data/test_image_info_cache.py::test_only_new_changed_and_corrupt_images_are_inspected_again",
    ],
    60: [
        "data/test_image_info_cache.py::test_a_damaged_file_is_noticed_and_replaced",
        "data/test_image_info_cache.py::test_a_link_in_its_place_is_not_written_through",
        "data/test_image_info_cache.py::test_without_a_folder_it_works_and_warns_once",
        "data/test_image_info_cache.py::test_nothing_of_the_users_is_changed",
    ],
    61: [
        "engine/test_check.py::test_folders",
        "data/test_folder.py::test_folders_are_classes",
        "data/test_folder.py::test_classes_of_another_split_are_matched_by_name",
    ],
    62: [
        "engine/test_check.py::test_everything_that_is_wrong_is_told_at_once",
        "engine/test_check.py::test_folders",
    ],
    65: [
        "engine/test_check.py::test_identities",
        "data/test_pk_sampler.py::test_an_embedding_needs_two_identities",
        "models/test_embedding.py::test_equal_vectors_have_finite_gradients",
    ],
    66: [],
    67: [
        "data/test_check_annotations.py::test_exit_codes",
        "data/test_check_annotations.py::test_ten_thousand_faults_are_told_in_twenty_lines_and_all_in_the_file",
        "data/test_check_annotations.py::test_the_report_is_the_same_each_time_and_replaces_nothing_else",
    ],
    91: [
        "engine/test_nonfinite.py::test_it_stops_before_the_update",
        "engine/test_training.py::test_a_loss_that_is_not_finite_stops_before_the_update",
    ],
    92: [
        "distributed/test_ranks_faults.py::test_all_processes_end_and_tell_the_cause",
    ],
    93: [
        "engine/test_nonfinite.py::test_it_stops_before_the_update",
    ],
    94: [
        "engine/test_nonfinite.py::test_a_step_left_out_changes_nothing",
        "engine/test_nonfinite.py::test_too_many_in_a_row_have_diverged",
        "engine/test_nonfinite.py::test_steps_that_the_scaler_of_fp16_leaves_out_are_counted_only",
        "engine/test_nonfinite.py::test_a_run_that_left_steps_out_resumes_bit_for_bit",
        "distributed/test_ranks_faults.py::test_a_step_is_left_out_by_all",
    ],
    95: [
        "engine/test_nonfinite.py::test_a_metric_that_is_not_a_number_is_never_the_best",
    ],
    96: [
        "engine/test_lost_steps.py::test_data_sets_and_batches_of_one_image",
    ],
    98: [
        "engine/test_lost_steps.py::test_the_state_after_the_last_whole_step_is_saved",
        "engine/test_lost_steps.py::test_errors_with_a_known_remedy",
    ],
    99: [
        "engine/test_optim.py::test_freezing_by_name_and_its_mistakes",
        "engine/test_nonfinite.py::test_losses_that_depend_on_nothing_trained_are_told",
        "models/test_broken_heads.py::test_losses",
        "models/test_broken_heads.py::test_predictions",
        "distributed/test_launch.py::test_gradients_are_averaged_and_what_no_loss_reaches_keeps_none",
    ],
    100: [
        "engine/test_lost_steps.py::test_a_head_that_raises",
    ],
    101: [
        "runs/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_no_litter",
        "runs/test_checkpoint.py::test_what_could_not_be_loaded_again_is_not_saved",
    ],
    102: [
        "runs/test_killing.py::test_a_run_that_is_killed_three_times_ends_the_same",
        "runs/test_killing.py::test_a_run_that_is_killed_twelve_times_ends_the_same",
        "runs/test_checkpoint_rotation.py::test_at_no_moment_is_there_no_checkpoint",
    ],
    105: [
        "runs/test_saving.py::test_a_disk_that_is_full_for_a_while_changes_nothing",
        "runs/test_saving.py::test_three_failures_in_a_row_end_the_run",
        "runs/test_saving.py::test_the_last_save_must_succeed",
        "runs/test_saving.py::test_a_file_system_that_takes_no_checkpoint",
        "runs/test_saving.py::test_files_beside_the_checkpoints_end_nothing",
        "runs/test_saving.py::test_a_device_that_is_full_is_named",
    ],
    106: [
        "runs/test_checkpoint_rotation.py::test_a_damaged_one_is_replaced_by_the_one_before_with_a_warning",
        "runs/test_checkpoint_rotation.py::test_what_a_run_is_loaded_from",
        "runs/test_directory.py::test_a_run_has_one_process_and_the_lock_dies_with_it",
        "runs/test_directory.py::test_without_locks_the_process_of_a_run_is_looked_for",
    ],
    107: [
        "runs/test_checkpoint_rotation.py::test_a_call_that_fails_leaves_what_was_there",
        "runs/test_checkpoint_rotation.py::test_at_no_moment_is_there_no_checkpoint",
        "runs/test_directory.py::test_a_run_has_one_process_and_the_lock_dies_with_it",
    ],
    109: [
        "runs/test_checkpoint.py::test_weights_that_do_not_fit_are_named",
        "engine/test_resuming.py::test_classes_and_models_that_do_not_fit_are_refused",
    ],
    110: [
        "engine/test_resume.py::test_a_run_that_is_cut_off_goes_on_bit_for_bit",
        "engine/test_resume.py::test_every_head_is_among_the_cases",
        "engine/test_resume.py::test_every_head_at_every_step_in_every_way",
        "engine/test_training.py::test_a_stopped_run_says_how_to_go_on_and_does_so_bit_for_bit",
    ],
    111: [
        "engine/test_resume.py::test_a_run_that_is_cut_off_goes_on_bit_for_bit",
        "engine/test_resume.py::test_the_count_for_early_stopping_goes_on",
        "engine/test_resume_controls.py::test_the_scaler_of_fp16_is_needed_and_compared",
        "engine/test_optim.py::test_a_first_step_that_the_scaler_of_fp16_skips_leaves_no_trace",
    ],
    112: [
        "distributed/test_resume_ranks.py::test_a_run_on_ranks_goes_on_bit_for_bit",
        "distributed/test_resume_ranks.py::test_every_head_on_two_ranks",
    ],
    113: [
        "data/test_sources.py::test_workers_change_nothing",
        "engine/test_resume.py::test_the_number_of_workers_changes_nothing",
    ],
    114: [
        "engine/test_resume_controls.py::test_each_part_of_the_state_is_needed_and_compared",
        "engine/test_resume_controls.py::test_every_part_of_the_state_has_its_control",
        "engine/test_resume_controls.py::test_what_depends_on_the_step_is_compared",
        "engine/test_resume_controls.py::test_the_order_of_gradient_surgery_is_compared",
        "engine/test_resume_controls.py::test_lines_of_the_log_beyond_the_checkpoint_are_compared",
        "engine/test_resume_controls.py::test_the_scaler_of_fp16_is_needed_and_compared",
    ],
    115: [
        "engine/test_resuming.py::test_what_may_change_is_told_and_counts_from_now_on",
        "engine/test_resuming.py::test_the_number_of_processes_is_compared",
        "engine/test_resuming.py::test_classes_and_models_that_do_not_fit_are_refused",
        "engine/test_resuming.py::test_a_run_that_is_done_says_so_and_is_left_as_it_is",
        "runs/test_checkpoint_rotation.py::test_a_newer_format_is_no_damage",
    ],
    116: [
        "engine/test_resuming.py::test_a_checkpoint_of_an_older_version_is_refused_with_the_new_names",
    ],
    117: [
        "engine/test_golden_losses.py::test_losses_are_the_stored_ones",
        "engine/test_golden_losses.py::test_small_changes_are_noticed_on_every_machine",
        "engine/test_golden_losses.py::test_one_digit_is_noticed_where_equality_is_asked_for",
    ],
    121: [
        "runs/test_stopping.py::test_a_signal_at_any_moment",
        "runs/test_stopping.py::test_a_run_that_is_stopped_before_its_first_step_blocks_nothing",
        "runs/test_stopping.py::test_a_signal_that_comes_twice_to_the_whole_group_is_one_request",
    ],
    122: [
        "runs/test_stopping.py::test_a_second_signal_leaves_at_once",
        "runs/test_stopping_around.py::test_a_signal_while_python_ends_does_not_change_the_exit_code",
    ],
    124: [
        "data/test_workers.py::test_a_worker_that_dies_or_hangs_is_an_error_that_names_the_image",
        "data/test_workers.py::test_a_death_interrupts_nothing_but_waiting_for_the_next_batch",
        "data/test_workers.py::TestFaultsOfOthers.test_an_exception_of_a_dataset",
        "data/test_workers.py::TestFaultsOfOthers.test_an_exception_of_a_transform",
        "data/test_workers.py::TestFaultsOfOthers.test_an_image_that_no_memory_can_hold",
        "data/test_workers.py::test_what_a_worker_cannot_send_is_reported_and_not_waited_for",
        "data/test_workers.py::test_a_dataset_that_cannot_be_sent_to_workers_is_reported",
        "data/test_workers.py::test_too_many_open_files_in_a_worker",
        "data/test_workers.py::test_a_training_run_ends_with_the_code_of_bad_data_and_says_which",
    ],
    125: [
        "runs/test_stopping.py::test_a_signal_at_any_moment",
        "runs/test_stopping.py::test_training_in_a_thread_leaves_signals_alone",
        "runs/test_stopping.py::test_forked_children_get_neither_handlers_nor_the_wakeup_pipe",
        "runs/test_stopping.py::test_what_was_ignored_stays_ignored",
        "runs/test_killing.py::test_the_workers_of_a_killed_run_end_by_themselves",
    ],
    126: [
        "engine/test_lost_steps.py::test_too_few_open_files",
        "engine/test_lost_steps.py::test_errors_with_a_known_remedy",
        "data/test_workers.py::test_hints_for_shortages",
    ],
    131: [
        "distributed/test_ranks_evaluation.py::test_figures_are_those_of_one_process",
        "distributed/test_ranks_evaluation.py::test_figures_are_those_of_one_process_for_any_number_of_images",
        "distributed/test_ranks_evaluation.py::test_sums_are_exact_in_any_order",
    ],
    133: [
        "distributed/test_ranks_evaluation.py::test_padding_of_the_last_batches_is_noticed",
    ],
    134: [
        "distributed/test_launch.py::test_the_shares_of_all_processes_are_the_batch_of_one",
        "data/test_sources.py::test_a_stream_passes_over_the_data_end_to_end",
        "data/test_pk_sampler.py::test_processes_share_a_batch_by_whole_identities",
    ],
    135: [
        "runs/test_stopping_around.py::test_a_process_whose_torchrun_is_gone_is_asked_to_stop",
        "distributed/test_ranks_faults.py::test_all_processes_end_and_tell_the_cause",
        "distributed/test_torchrun.py::test_torchrun_shows_the_cause_without_a_traceback_of_ours",
    ],
    136: [
        "distributed/test_ranks_faults.py::test_all_processes_end_and_tell_the_cause",
    ],
    138: [
        "distributed/test_launch.py::test_an_incomplete_environment_is_told",
        "distributed/test_launch.py::test_more_processes_than_gpus_are_told",
        "distributed/test_launch.py::test_an_address_in_use_is_told",
        "distributed/test_launch.py::test_a_process_that_never_comes_is_told",
        "distributed/test_launch.py::test_a_batch_that_cannot_be_shared_is_told",
        "distributed/test_ranks_evaluation.py::test_figures_are_those_of_one_process",
    ],
    139: [
        "distributed/test_ranks_faults.py::test_processes_with_other_data_are_told",
        "distributed/test_ranks_faults.py::test_processes_with_other_settings_are_told",
    ],
    140: [
        "distributed/test_ranks.py::test_two_ranks_train_to_the_weights_of_one",
        "distributed/test_torchrun.py::test_a_restarted_run_ends_with_the_weights_of_an_uninterrupted_one",
    ],
    141: [
        "metrics/test_coco_evaluator.py::test_no_detections_score_zero_and_no_objects_are_undefined",
        "metrics/test_coco_evaluator.py::test_nothing_at_all_is_not_defined",
        "metrics/test_coco_files.py::test_without_objects_figures_are_null_and_without_detections_zero",
        "metrics/test_coco_files.py::test_why_a_figure_is_not_defined_is_told_once",
    ],
    142: [
        "metrics/test_coco_refusals.py::test_what_the_engines_score_wrongly_is_refused",
        "metrics/test_coco_refusals.py::test_numbers_of_another_kind_and_far_away_are_refused",
        "metrics/test_coco_evaluator.py::test_what_a_model_computed_must_be_finite",
        "engine/test_eval_other_data.py::test_a_diverged_model_is_told_by_the_image",
        "metrics/test_coco_files.py::test_all_wrong_records_are_told_at_once_by_their_place_in_the_file",
    ],
    143: [
        "metrics/test_coco_refusals.py::test_what_the_engines_score_wrongly_is_refused",
        "metrics/test_coco_refusals.py::test_numbers_of_another_kind_and_far_away_are_refused",
        "metrics/test_coco_refusals.py::test_wrong_annotations_are_refused",
        "metrics/test_coco_evaluator.py::test_a_perfect_detection_scores_one_also_on_annotation_id_zero",
        "metrics/test_coco_evaluator.py::test_annotations_with_the_same_id_all_count",
    ],
    146: [
        "metrics/test_coco_fuzz.py::test_every_figure_is_pycocotools_bit_for_bit",
        "metrics/test_coco_fuzz.py::test_five_thousand_scenes_are_scored_as_by_pycocotools",
        "metrics/test_coco_fuzz.py::test_one_wrong_value_gives_the_right_figures_or_a_plain_error",
        "metrics/test_coco_fuzz.py::test_five_thousand_wrong_values",
        "metrics/test_coco_engines.py::test_the_engines_are_equal_bit_for_bit",
    ],
    147: [
        "metrics/test_coco_files.py::test_stored_files_have_the_figures_that_pycocotools_gave_them",
    ],
    148: [
        "metrics/test_coco_refusals.py::test_masks_that_the_engines_score_wrongly_or_never_end_with_are_refused",
        "metrics/test_coco_loop.py::test_masks_as_pixels_probabilities_and_run_lengths_are_the_same",
        "metrics/test_coco_evaluator.py::test_masks_without_boxes_from_a_head_are_refused",
        "data/test_coco_limits.py::test_they_are_refused_with_little_memory",
        "metrics/test_coco_files.py::test_segm_on_boxes_and_boxes_next_to_masks",
    ],
    150: [
        "metrics/test_confusion.py::test_by_hand",
        "metrics/test_confusion.py::test_nothing_but_ignored_pixels_is_not_defined",
        "metrics/test_confusion.py::test_of_one_class_and_of_as_many_as_there_can_be",
        "models/test_contracts_edges.py::test_what_is_all_ignored_has_no_loss",
        "models/test_semantic.py::test_images_of_ignored_pixels_alone_give_zero",
    ],
    151: [
        "visualization/test_plots.py::test_images_are_there_and_readable",
    ],
    153: [
        "engine/test_eval_other_data.py::test_other_classes_are_an_error_that_shows_the_difference",
        "engine/test_eval_other_data.py::test_a_split_of_another_size_is_scored",
        "engine/test_eval_other_data.py::test_a_missing_image_is_an_error_and_nothing_is_scored_without_it",
        "engine/test_eval_other_data.py::test_an_empty_split_is_an_error",
    ],
    161: [
        "project/test_security.py::test_payloads_are_refused_in_every_container",
        "project/test_security.py::test_nothing_lets_a_payload_in",
        "project/test_security.py::test_the_payloads_would_run",
        "project/test_security.py::test_the_cache_holds_no_objects",
    ],
    162: [
        "data/test_file_names.py::test_names_that_leave_the_folder_are_refused",
        "data/test_file_names.py::test_links_that_lead_out_are_refused_unless_they_are_allowed",
        "data/test_file_names.py::test_semantic_maps_behind_links_are_refused_too",
        "data/test_file_names.py::test_no_name_in_annotations_can_forge_a_line",
        "data/test_coco_faults.py::test_each_fault_has_a_place_and_a_reason",
    ],
    163: [
        "data/test_image_bombs.py::test_a_gzip_file_that_says_it_holds_far_more_is_a_bomb",
    ],
    165: [
        "config/test_plugins.py::test_a_runs_own_word_imports_nothing",
        "config/test_plugins.py::test_every_place_that_names_a_class_is_looked_at",
        "config/test_plugins.py::test_only_components_of_that_section_are_visionkits",
        "config/test_plugins.py::test_the_user_may_allow_it",
    ],
    166: [
        "project/test_security.py::test_the_source_has_no_call_that_runs_what_a_file_says",
        "project/test_security.py::test_such_a_call_would_be_found",
    ],
    167: [
        "data/test_hostile_json.py::test_huge_numbers_and_depth",
        "data/test_coco_faults.py::test_files_that_are_not_coco",
        "data/test_file_names.py::test_long_and_odd_names_take_no_time",
    ],
    169: [
        "project/test_offline.py::test_nothing_reaches_the_network_and_no_secret_is_written",
    ],
    171: [
        "project/test_security.py::test_exported_programs_are_not_weights",
    ],
    172: [
        "project/test_offline.py::test_nothing_reaches_the_network_and_no_secret_is_written",
    ],
    173: [
        "models/test_published.py::test_without_a_network",
        "models/test_published.py::test_a_failed_download_leaves_nothing",
    ],
    174: [
        "models/test_published.py::test_a_failed_download_leaves_nothing",
        "models/test_published.py::test_a_damaged_file_at_hand_is_named_and_left_to_the_user",
    ],
    181: [
        "cli/test_exit_codes.py::test_help_of_every_command_imports_nothing_heavy",
        "cli/test_exit_codes.py::test_an_unknown_command_is_answered_with_the_known_ones",
    ],
    183: [
        "project/test_optional_imports.py::test_no_curves_without_matplotlib",
        "project/test_optional_imports.py::test_a_corrupt_hotcoco_leaves_the_metrics_to_pycocotools",
        "project/test_optional_imports.py::test_timm_says_what_is_wrong_with_it",
        "project/test_offline.py::test_nothing_reaches_the_network_and_no_secret_is_written",
    ],
    185: [],
    187: [
        "docs/test_docs_blocks.py::test_readmes_python_runs",
        "docs/test_docs_blocks.py::test_commands_parse_and_their_settings_fit_the_config",
        "docs/test_docs_blocks.py::test_configs_of_the_pages_are_good_ones",
        "docs/test_docs_blocks.py::test_every_key_of_a_config_is_on_its_page",
        "cli/test_exit_codes.py::test_every_exit_code_is_that_of_the_page",
        "cli/test_exit_codes.py::test_the_page_lists_the_codes_that_are_tried_here",
        "docs/test_docs.py::test_the_config_reference_lists_every_setting_as_it_is",
        "docs/test_add_a_head.py::test_the_pages_commands_train_evaluate_and_predict",
        "docs/test_from_zero.py::test_every_block_runs_and_every_promise_holds",
    ],
    188: [
        "project/test_packaging.py::test_the_core_packages_are_few_and_each_has_a_lowest_version",
        "project/test_packaging.py::test_the_lowest_torch_is_one_that_files_cannot_trick",
        "project/test_offline.py::test_nothing_reaches_the_network_and_no_secret_is_written",
    ],
}
