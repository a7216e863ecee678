# Everything sets itself up: each target makes the environment it needs, and makes it again when
# a pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := clients/python
PROJECTS := pyproject.toml clients/python/pyproject.toml server/pyproject.toml
PACKAGES := -e clients/python -e 'server[embedded]'
PROTOS := $(wildcard protos/gatekey/v1/*.proto)
SERVICES := $(wildcard protos/gatekey/v1/*_service.proto)
GO := clients/go
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
TYPESCRIPT := clients/typescript
# Written by `npm ci`; nothing where there is no npm.
TYPESCRIPT_READY := $(if $(shell command -v npm),$(TYPESCRIPT)/node_modules/.package-lock.json)
PYTEST_SIDE_BY_SIDE := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
ALL_STUBS := $(STUBS)/gatekey/v1 $(STUBS)/gatekey/_methods.py $(GO)/gatekeyv1 $(TYPESCRIPT)/src/gen

.DEFAULT_GOAL := help
.PHONY: help run test slow drills bench chaos attack fuzz lint format types lint-imports protos protos-python protos-go protos-typescript \
	protos-lint protos-check protos-baseline docs docs-serve check lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Serve on 127.0.0.1:50051 with an embedded database and five example products
	@exec $(BIN)/gatekey serve --demo examples

test: $(VENV)/.dev ## Run the tests, but for those of the next two targets, on a database that they start themselves
	$(PYTEST_SIDE_BY_SIDE) -m "not slow and not drill" $(ARGS)

slow: $(VENV)/.dev ## Run the tests that take seconds each, mostly to start processes
	$(PYTEST_SIDE_BY_SIDE) -m "slow and not drill" $(ARGS)

drills: $(VENV)/.dev ## Run the tests that take long or are about time, with nothing beside them
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/pytest -m drill $(ARGS)

chaos: $(VENV)/.dev ## Look for stale decisions under load and faults; ARGS="--help" says how
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev ## Send random messages, bytes and specs to a server; ARGS="--seconds 300 --seed 1 --save DIRECTORY"
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.fuzz $(ARGS)

attack: $(VENV)/.dev ## Attack a server in every known way while a client checks; ARGS="--help" says how
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.attack $(ARGS)

bench: $(VENV)/.bench ## Measure everything beside its peers; ARGS="throughput cache" for some of it
	$(BIN)/python -m bench $(ARGS)

check: lint types lint-imports protos-lint protos-check ## All checks but the tests

lint: $(VENV)/.dev ## Check style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## Check types, strictly
	$(BIN)/mypy
	$(BIN)/basedpyright

lint-imports: $(VENV)/.dev ## Check which layer imports which
	$(BIN)/lint-imports

protos: protos-python protos-go protos-typescript ## Generate the stubs of all languages from protos/

protos-python: $(VENV)/.dev ## Generate the Python stubs, and the client's table of methods
	rm -f $(STUBS)/gatekey/v1/*_pb2*.py*
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
		--python_out=$(STUBS) --mypy_out=quiet:$(STUBS) $(PROTOS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
		--grpc_python_out=$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $(SERVICES)
	$(BIN)/python $(STUBS)/generate.py

protos-go: $(VENV)/.dev ## Generate the Go stubs, where Go is installed
ifeq ($(shell command -v go),)
	@echo "go is not installed: the Go stubs stay as they are."
else
	cd $(GO) && GOBIN="$(CURDIR)/$(GO)/.bin" go install google.golang.org/protobuf/cmd/protoc-gen-go
	GOBIN="$(CURDIR)/$(GO)/.bin" go install $(PROTOC_GEN_GO_GRPC)
	rm -f $(GO)/gatekeyv1/*.pb.go
	$(BIN)/buf generate protos --template $(GO)/buf.gen.yaml
endif

protos-typescript: $(VENV)/.dev $(TYPESCRIPT_READY) ## Generate the TypeScript stubs, where npm is installed
ifeq ($(TYPESCRIPT_READY),)
	@echo "npm is not installed: the TypeScript stubs stay as they are."
else
	rm -rf $(TYPESCRIPT)/src/gen
	$(BIN)/buf generate protos --template $(TYPESCRIPT)/buf.gen.yaml
	packages=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		$(BIN)/buf generate $$packages --path $$packages/google/rpc/status.proto --path $$packages/google/rpc/error_details.proto \
		--template $(TYPESCRIPT)/buf.gen.yaml
endif

protos-lint: $(VENV)/.dev ## Check the protocol's style, and that no change breaks the baseline's clients
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb

protos-check: protos ## Check that the committed stubs are those of protos/
	@test -z "$$(git status --porcelain -- $(ALL_STUBS))" || \
		{ git --no-pager diff --stat -- $(ALL_STUBS); echo "The stubs differ from protos/: commit what 'make protos' makes."; exit 1; }

protos-baseline: $(VENV)/.dev ## Take the protocol as it is for the one that must not be broken; part of a release
	$(BIN)/buf build protos --exclude-source-info -o protos/baseline.binpb

docs: $(VENV)/.docs ## Build the documents' site into site/; a broken link makes it fail
	$(BIN)/python -m docs.generator

docs-serve: docs ## Build the documents' site and serve it on 127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

lock: ## Choose the newest versions of all dependencies and write them down
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-lock/bin/python -m pip install --quiet --group dev --group docs ./clients/python './server[embedded]'
	{ echo "# Written by 'make lock': the versions that development and CI use."; \
		$(VENV)-lock/bin/python -m pip freeze --exclude gatekey --exclude gatekey-server; } > constraints.txt
	rm -rf $(VENV)-lock

clean: ## Remove the environment and all caches; the data in .gatekey/ stay
	rm -rf $(GO)/.bin $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist $(TYPESCRIPT)/build
	rm -rf build/docs site
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.run: $(PROJECTS) constraints.txt | $(VENV)/.pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES)
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --group bench
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	@touch $@

$(VENV)/.dev: $(PROJECTS) constraints.txt | $(VENV)/.pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) --group dev
	@touch $@ $(VENV)/.run

$(TYPESCRIPT)/node_modules/.package-lock.json: $(TYPESCRIPT)/package-lock.json
	cd $(TYPESCRIPT) && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline
	@touch $@
