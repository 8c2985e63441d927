# Which notebooks a notebook reads artefacts of; tests/notebooks/test_static.py compares this with the notebooks.
deps_00_overview :=
deps_01_sps :=
deps_02_emulator :=
deps_03_survey :=
deps_04_calibration := 02_emulator 03_survey
deps_05_validation := 02_emulator 03_survey 04_calibration
deps_06_redshifts := 02_emulator 03_survey 04_calibration
deps_07_sed_fitting := 02_emulator 03_survey 04_calibration
deps_08_photoz := 02_emulator 03_survey 04_calibration 07_sed_fitting
deps_09_population := 03_survey 04_calibration
deps_10_completeness := 03_survey 04_calibration
deps_11_extrapolation := 02_emulator 03_survey 04_calibration
deps_12_explainability := 02_emulator 03_survey 04_calibration
deps_99_colophon := $(filter-out 99_colophon,$(NB))
